"""One self-contained HTML page about finished or running runs and sweeps: no script, no network, charts inlined."""
