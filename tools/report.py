"""Plots and tables of finished or running runs, from their folders alone."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..lm.run import Run
from .records import rate, smooth, tokens_at, valid_scores


def report_runs(folders: list[Path], out: Path | None, console: Console) -> None:
    """Print one row per run and validation set, and write the page: `out`, by default report.html in the first folder.

    A folder is a training run or a sweep over small models; sweeps are on the page alone.
    """
    from .report_page.collect import SWEEP_FILE
    from .report_page.page import write_page

    target = write_page(folders, out or folders[0] / "report.html")
    if runs := [Run(folder) for folder in folders if not (folder / SWEEP_FILE).is_file()]:
        console.print(_table(runs))
    console.print(f"page: {target}", highlight=False, markup=False, soft_wrap=True)


def _table(runs: list[Run]) -> Table:
    table = Table(title="runs", title_justify="left")
    for column in ("run", "step", "train loss", "tokens/s", "validation", "nats per token", "bits per byte"):
        table.add_column(column, justify="left" if column in ("run", "validation") else "right")
    for run in runs:
        steps = [record for record in run.metrics() if record["kind"] == "train"]
        if not steps:
            continue
        tail = steps[-20:]
        loss = sum(record["loss"] for record in tail) / len(tail)
        head = (run.name, str(steps[-1]["step"]), f"{loss:.3f}", f"{rate(steps):,.0f}")
        rows = [(n, f"{s['loss']:.3f}", f"{s['bits_per_byte']:.3f}") for n, s in valid_scores(run).items()]
        for i, row in enumerate(rows or [("none yet", "", "")]):
            table.add_row(*(head if i == 0 else ("",) * 4), *row)
    return table


def plot_runs(runs: list[Run], target: Path) -> Path:
    """Loss and learning rate against tokens, one colour per run, validation as dots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ..eval.figures import save_figure

    figure, (loss, rates) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
    for i, run in enumerate(runs):
        records = run.metrics()
        steps = [record for record in records if record["kind"] == "train"]
        tokens = [record["tokens"] / 1e6 for record in steps]
        values = [record["loss"] for record in steps]
        loss.plot(tokens, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
        loss.plot(tokens, smooth(values), color=f"C{i}", label=f"{run.name}: train")
        rates.plot(tokens, [record["lr"] for record in steps], color=f"C{i}")
        for marker, name in zip("osv^Dxp*", valid_scores(run), strict=False):
            dots = [r for r in records if r["kind"] == f"valid/{name}"]
            at = [tokens_at(steps, r["step"]) / 1e6 for r in dots]
            label = f"{run.name}: {name}"
            loss.plot(at, [r[f"{name}/loss"] for r in dots], marker, color=f"C{i}", markersize=5, label=label)
    loss.set(ylabel="nats per token")
    loss.grid(alpha=0.3)
    loss.legend(fontsize=8)
    rates.set(xlabel="tokens (millions)", ylabel="learning rate")
    rates.grid(alpha=0.3)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, target, dpi=120)
    plt.close(figure)
    return target
