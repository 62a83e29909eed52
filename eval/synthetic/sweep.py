"""A grid of runs in parallel processes: one line of OUT/results.jsonl per finished run, and a table of them all."""

import statistics
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ...lm.data.files import append_records, read_records
from ...lm.parts.errors import ConfigError, DataError
from ...lm.parts.strict import nearest
from ..console import binary
from ..jobs import run_calls
from .recipe import Point, SyntheticRecipe, load_point

Line = dict[str, Any]

DESCRIPTION = ("label", "task", "length", "n_pairs", "stderr", "n")
"""Keys of a slice that are no metrics."""

NOTES = (
    "lr: the best by mean test {measure} over seeds, of those swept. {measure}, exact: mean over slices and seeds ± "
    "standard deviation over the seeds. state: bytes of one sequence after the longest test example, float32. "
    "to 99 %: median of the steps at which a probe of the test examples was more than 99 % right, and how many of the "
    "seeds got there. steps, s/run: means; training ends early when a run is solved.\n"
)


class Call(NamedTuple):
    """What a worker needs for one run."""

    recipe: str
    overrides: list[str]
    point: Point


def run_call(call: Call) -> Line:
    """Train one point of the grid; the line of results.jsonl."""
    from .train import train

    recipe = load_point(call.recipe, call.overrides, call.point)
    point = call.point
    head = {"recipe": recipe.name, "variant": point.variant.name, "mixer": point.variant.mixer}
    return {**head, "lr": point.lr, "seed": point.seed, **train(recipe), "fingerprint": recipe.fingerprint()}


def sweep(name: str, overrides: list[str], jobs: int, only: str | None, out: Path, console: Console) -> list[str]:
    """Run the points of the recipe's grid that OUT/results.jsonl does not hold yet. Returns a line per failed run.

    only: a glob over variants. A line is appended by one write as its run ends, so that the same command continues a
    sweep that was stopped. Raises ConfigError, before anything runs, when OUT holds results of another recipe.
    """
    recipe = SyntheticRecipe.load(name, overrides)
    wanted = select(recipe, only)
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    done = {(x["variant"], x["lr"], x["seed"]): x["fingerprint"] for x in read_results(results)}
    for point in recipe.points():
        there = done.get(_key(point))
        if there is not None and there != load_point(name, overrides, point).fingerprint():
            raise ConfigError(
                f"{results}: {point.label} was run under another recipe; give --out another folder, or remove this one"
            )
    missing = [Call(name, overrides, point) for point in wanted if _key(point) not in done]
    console.print(
        f"{recipe.name}: {len(wanted)} runs, {len(wanted) - len(missing)} finished already",
        highlight=False,
        markup=False,
    )
    return _run(missing, jobs, results, console)


def _run(todo: list[Call], jobs: int, results: Path, console: Console) -> list[str]:
    """Run all of `todo`, noting each as it ends. Returns a line per failed run."""
    failed = []
    with closing(run_calls(run_call, todo, jobs)) as outcomes:
        for ended, outcome in enumerate(outcomes, 1):
            label = outcome.job.point.label
            if outcome.error:
                failed.append(f"{label}: {outcome.error}")
                said = f"FAILED: {outcome.error}"
            else:
                append_records(results, [outcome.value])
                said = _said(outcome.value)
            console.print(f"{ended}/{len(todo)} | {label}: {said}", highlight=False, markup=False, soft_wrap=True)
    return failed


def select(recipe: SyntheticRecipe, only: str | None) -> list[Point]:
    """The points whose variants match the glob `only`, all without one."""
    chosen = [point for point in recipe.points() if fnmatch(point.variant.name, only or "*")]
    if not chosen:
        raise ConfigError(f"--only {only!r}: matches no variant; {nearest(str(only), recipe.variants())}")
    return chosen


def read_results(path: Path) -> list[Line]:
    """All runs of a sweep, each once."""
    try:
        return list({(line["variant"], line["lr"], line["seed"]): line for line in read_records(path)}.values())
    except KeyError as error:
        raise DataError(f"{path}: not a results file, a line has no {error}; move it away") from None


def _key(point: Point) -> tuple[str, float, int]:
    return point.variant.name, point.lr, point.seed


def _said(line: Line) -> str:
    score = f"accuracy {line['accuracy']:.3f}" if "accuracy" in line else f"mse {line['mse']:.3g}"
    return f"{score} after {line['steps']} steps, {line['seconds']:.0f} s"


class Best(NamedTuple):
    """A variant at its best learning rate: one line per seed."""

    lines: list[Line]

    def values(self, key: str) -> list[float]:
        """One number per seed; none when the tasks are not measured by `key`."""
        return [line[key] for line in self.lines if key in line]

    @property
    def score(self) -> float:
        """What learning rates are compared by: mean accuracy, or minus the mean squared error."""
        accuracies = self.values("accuracy")
        return statistics.fmean(accuracies) if accuracies else -statistics.fmean(self.values("mse"))


def best(lines: list[Line]) -> dict[str, Best]:
    """By variant, in the order of the recipe, its runs at the learning rate that is best on average over the seeds.

    Rates that not all seeds of the variant have been run at yet are no candidates, unless none has.
    """
    found: dict[str, Best] = {}
    for variant in dict.fromkeys(line["variant"] for line in lines):
        mine = [line for line in lines if line["variant"] == variant]
        by_rate = [Best([line for line in mine if line["lr"] == lr]) for lr in {line["lr"] for line in mine}]
        most = max(len(candidate.lines) for candidate in by_rate)
        found[variant] = max((b for b in by_rate if len(b.lines) == most), key=lambda b: (b.score, -b.lines[0]["lr"]))
    return found


def spread(values: list[float], digits: int = 3) -> str:
    """mean ± standard deviation; the mean alone of a single value."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def measure(lines: list[Line]) -> str:
    """What the runs are compared by."""
    return "accuracy" if "accuracy" in lines[0] else "mse"


def header(lines: list[Line]) -> tuple[str, ...]:
    """Columns of `summary`."""
    return ("variant", "lr", "state", "parameters", measure(lines), "exact", "to 99 %", "steps", "s/run")


def summary(lines: list[Line]) -> Iterator[tuple[str, ...]]:
    """Rows under `header`."""
    for variant, chosen in best(lines).items():
        first, reached = chosen.lines[0], [x["steps_to_99"] for x in chosen.lines if x["steps_to_99"] is not None]
        to_99 = f"{statistics.median(reached):.0f} " if reached else ""
        yield (
            variant,
            f"{first['lr']:g}",
            binary(first["state_bytes"]),
            f"{first['parameters']:,}",
            spread(chosen.values("accuracy") or chosen.values("mse")),
            spread(chosen.values("exact")),
            f"{to_99}({len(reached)}/{len(chosen.lines)})",
            f"{statistics.fmean(chosen.values('steps')):.0f}",
            f"{statistics.fmean(chosen.values('seconds')):.0f}",
        )


def metrics(lines: list[Line]) -> list[str]:
    """What the slices are measured by."""
    return list(dict.fromkeys(key for line in lines for s in line["slices"] for key in s if key not in DESCRIPTION))


def by_slice(lines: list[Line], metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each variant's `metric` on every slice that has it; mean ± deviation over seeds."""
    labels = list(dict.fromkeys(s["label"] for line in lines for s in line["slices"] if metric in s))
    rows = []
    for variant, runs in best(lines).items():
        mine = [s for line in runs.lines for s in line["slices"]]
        rows.append([variant, *(spread([s[metric] for s in mine if s["label"] == label]) for label in labels)])
    return ["variant", *labels], rows
