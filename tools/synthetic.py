"""`hybridlm synthetic`: a sweep over synthetic tasks, its table and its plots."""

import shlex
from pathlib import Path

from rich.console import Console

from ..eval.console import markdown_table, plain_table
from ..eval.synthetic.plots import plot_ratio, plot_tradeoff
from ..eval.synthetic.recipe import SyntheticRecipe
from ..eval.synthetic.sweep import (
    NOTES,
    Line,
    best,
    by_slice,
    header,
    measure,
    metrics,
    read_results,
    spread,
    summary,
    sweep,
)
from ..eval.synthetic.task import Anchor
from ..lm.data.files import write_atomically
from ..lm.parts.errors import UserError
from .study import hardware

ON_TERMINAL = (0, 1, 2, 4, 6)  # columns that fit
"""What has room in 80 columns; results.md has all."""


REUSE = ("variant", "rank correlation", "overlap of the strongest")
REUSE_NOTE = (
    "Layers that both tasks need, as in arXiv 2310.08744: by how much the logit difference of each task falls when the "
    "mixer of a layer gives its mean output, compared between the tasks by rank and by the strongest tenth of the "
    "layers; effects by layer are in results.jsonl. A model that has not learnt both tasks has nothing to share."
)


def run_synthetic(
    recipe: str, overrides: list[str], jobs: int, only: str | None, out: Path | None, console: Console
) -> Path:
    """Run what OUT/results.jsonl lacks of the recipe's grid; write OUT/results.md and the plots from all that it holds.

    Returns OUT, by default runs/NAME. Raises UserError at the end when runs failed, or a bound of `expect:` is broken.
    """
    loaded = SyntheticRecipe.load(recipe, overrides)
    out = out or Path("runs") / loaded.name
    failed = sweep(recipe, overrides, jobs, only, out, console)
    order = {variant: i for i, variant in enumerate(loaded.variants())}
    lines = sorted(read_results(out / "results.jsonl"), key=lambda line: order.get(line["variant"], len(order)))
    if lines:
        typed = ["hybridlm", "synthetic", recipe, *overrides, *(["--only", only] if only else []), "--out", str(out)]
        _write(loaded, lines, shlex.join(typed), out, console)
    if failed:
        runs = "".join(f"\n  {line}" for line in failed)
        raise UserError(f"{loaded.name}: {len(failed)} runs failed; the same command tries them again{runs}")
    _check(loaded, lines)
    return out


def _write(recipe: SyntheticRecipe, lines: list[Line], typed: str, out: Path, console: Console) -> None:
    rows, columns = list(summary(lines)), header(lines)
    slices = {metric: by_slice(lines, metric) for metric in metrics(lines)}
    narrow = [tuple(row[i] for i in ON_TERMINAL) for row in (columns, *rows)]
    console.print(plain_table(f"{recipe.name}: best learning rate, mean over seeds", narrow[0], narrow[1:]))
    for metric, cells in slices.items():
        console.print(plain_table(f"{metric} by slice", *cells))
    reused = reuse_rows(lines)
    if reused:
        console.print(plain_table("layers that both tasks need", REUSE, reused))
    parts = [
        f"`{typed}`, {len(lines)} runs, on {hardware()}.\n",
        markdown_table(columns, rows),
        NOTES.format(measure=measure(lines)),
        *(f"{metric} by slice:\n\n{markdown_table(*cells)}" for metric, cells in slices.items()),
    ]
    if reused:
        parts.append(f"{REUSE_NOTE}\n\n{markdown_table(REUSE, reused)}")
    if anchors := anchor_rows(recipe):
        heads = ("figure", "slice", "metric", "value", "source")
        parts.append(f"Published and closed-form figures:\n\n{markdown_table(heads, anchors)}")
    write_atomically(out / "results.md", "\n".join(parts).encode())
    if all("accuracy" in line for line in lines):
        plots = [*plot_tradeoff(lines, out / "tradeoff"), *plot_ratio(lines, out / "ratio")]
        console.print(f"plots: {', '.join(str(plot) for plot in plots)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"table: {out / 'results.md'}", highlight=False, markup=False, soft_wrap=True)


def reuse_rows(lines: list[Line]) -> list[tuple[str, ...]]:
    """Rows under REUSE, mean and deviation over seeds at the best learning rate; none without two circuit tasks."""
    found = {name: [line["reuse"] for line in runs.lines if "reuse" in line] for name, runs in best(lines).items()}
    return [
        (name, *(spread([one[key] for one in scores]) for key in ("spearman", "jaccard")))
        for name, scores in found.items()
        if scores
    ]


def anchor_rows(recipe: SyntheticRecipe) -> list[tuple[str, ...]]:
    """Every figure once, with the test slices it belongs to."""
    slices: dict[Anchor, list[str]] = {}
    for part in recipe.test:
        for anchor in part.task.anchors():
            slices.setdefault(anchor, []).append(part.task.label)
    every = len(recipe.test) if len(recipe.test) > 1 else 0
    return [
        (a.who, "all" if len(labels) == every else ", ".join(labels), a.metric, f"{a.value:.4g}", a.source)
        for a, labels in slices.items()
    ]


def _check(recipe: SyntheticRecipe, lines: list[Line]) -> None:
    """Raise UserError that names every variant whose accuracy breaks its bound; one that was not run breaks none."""
    chosen = best(lines)
    found = {name: bound.broken_by(chosen[name].score) for name, bound in recipe.expect.items() if name in chosen}
    if broken := [f"{name}: {what}" for name, what in found.items() if what]:
        raise UserError(f"{recipe.name}: not as expected; " + "; ".join(broken))
