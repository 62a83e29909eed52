"""Programs around a run: baselines, benchmarks, reports."""
