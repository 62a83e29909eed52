"""Results of needles: a file to keep, a table to read, a heat map to look at."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from rich.table import Table

from ..saved import Saved

if TYPE_CHECKING:
    from .prompt import Prompt

METRICS = ("score", "answer_accuracy", "answer_exact", "answer_nats")


@dataclass(frozen=True)
class Answered:
    """One prompt. score: share of the answers that are in the text the model wrote; None when it wrote none.

    Of the right answer's tokens, each after the right ones: answer_accuracy, the share that are the model's first
    choice; answer_exact, whether all are; answer_nats, the mean of -log p.
    """

    prompt: "Prompt"
    score: float | None
    answer_accuracy: float
    answer_exact: float
    answer_nats: float


@dataclass(frozen=True)
class Cell:
    """Means of the prompts of one task, length and depth; depth None where the answer lies at several depths.

    truncated: prompts that were cut. There are none: a prompt has its length and runs whole, or it is an error.
    """

    task: str
    length: int
    depth: float | None
    score: float | None
    n: int
    truncated: int
    answer_accuracy: float
    answer_exact: float
    answer_nats: float


@dataclass(frozen=True)
class Total:
    """Means of the prompts of one task and length, and the standard error of the score's; None for one prompt.

    beyond: prompts longer than what the model's positions were trained for.
    """

    task: str
    length: int
    score: float | None
    stderr: float | None
    n: int
    beyond: int
    answer_accuracy: float
    answer_exact: float
    answer_nats: float


@dataclass(frozen=True)
class Needles(Saved):
    """Everything measured on one model. fingerprint: of what was asked; other fingerprints ask other questions."""

    kind: ClassVar[str] = "needles"

    cells: list[Cell]
    summary: list[Total]
    haystack: str
    fingerprint: str
    checkpoint: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        content = cls.read(path)
        cells = [Cell(**cell) for cell in content.pop("cells")]
        return cls(cells, [Total(**total) for total in content.pop("summary")], **content)

    def asked(self) -> Any:
        return self.fingerprint, [total.score is None for total in self.summary]  # texts may be written or not

    def values(self) -> dict[str, float]:
        """The numbers to log: each metric of each task and length."""
        named = {f"{t.task}/{t.length}/{metric}": getattr(t, metric) for t in self.summary for metric in METRICS}
        return {name: value for name, value in named.items() if value is not None}

    def table(self) -> Table:
        """One row per task and length."""
        table = Table(title=f"needles in {self.haystack}", title_justify="left", caption_justify="left")
        table.add_column("task", no_wrap=True)
        for column in ("length", "score", "± stderr", "answer tokens right", "all right", "nats per token", "n"):
            table.add_column(column, justify="right")
        table.add_column("note", no_wrap=True)
        for t in self.summary:
            numbers = (t.score, t.stderr, t.answer_accuracy, t.answer_exact, t.answer_nats)
            cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
            note = f"{t.beyond} beyond" if t.beyond else ""
            table.add_row(t.task, str(t.length), *cells, str(t.n), note)
        if any(t.beyond for t in self.summary):
            table.caption = "beyond: prompts longer than what the model's positions were trained for"
        return table

    def plot(self, folder: Path) -> Path | None:
        """Depth against length in folder/needles.png, of what was written, or else foretold; None without depths."""
        if all(cell.depth is None for cell in self.cells):
            return None
        written = all(cell.score is not None for cell in self.cells)
        return plot_heat_map(self, folder / "needles.png", "score" if written else "answer_accuracy")


def summarise(answered: Iterable[Answered], limit: int | None) -> tuple[list[Cell], list[Total]]:
    """Means by task, length and depth, and by task and length; limit: the model's, None without one."""
    cells: dict[tuple[str, int, float | None], list[Answered]] = defaultdict(list)
    totals: dict[tuple[str, int], list[Answered]] = defaultdict(list)
    for one in answered:
        cells[one.prompt.task, one.prompt.length, one.prompt.depth].append(one)
        totals[one.prompt.task, one.prompt.length].append(one)
    return (
        [_cell(key, group) for key, group in cells.items()],
        [_total(task, length, group, limit) for (task, length), group in totals.items()],
    )


def _cell(key: tuple[str, int, float | None], group: list[Answered]) -> Cell:
    means = _means(group)
    return Cell(
        *key,
        score=means.score,
        n=len(group),
        truncated=0,
        answer_accuracy=means.answer_accuracy,
        answer_exact=means.answer_exact,
        answer_nats=means.answer_nats,
    )


def _total(task: str, length: int, group: list[Answered], limit: int | None) -> Total:
    means = _means(group)
    return Total(
        task,
        length,
        score=means.score,
        stderr=_stderr(group),
        n=len(group),
        beyond=len(group) if limit is not None and length > limit else 0,
        answer_accuracy=means.answer_accuracy,
        answer_exact=means.answer_exact,
        answer_nats=means.answer_nats,
    )


class _Means(NamedTuple):
    """Of the fields of Answered; no score where any prompt has none."""

    score: float | None
    answer_accuracy: float
    answer_exact: float
    answer_nats: float


def _means(group: list[Answered]) -> _Means:
    scores = [one.score for one in group if one.score is not None]
    return _Means(
        statistics.fmean(scores) if len(scores) == len(group) else None,
        statistics.fmean(one.answer_accuracy for one in group),
        statistics.fmean(one.answer_exact for one in group),
        statistics.fmean(one.answer_nats for one in group),
    )


def _stderr(group: list[Answered]) -> float | None:
    scores = [one.score for one in group if one.score is not None]
    return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None


def plot_heat_map(needles: Needles, path: str | Path, metric: str = "score") -> Path:
    """Depth against length, one panel per task that has depths; a .png or .svg. `metric`: a field of `Cell`.

    Raises ValueError when no task has a depth or the metric was not measured.
    """
    cells = [cell for cell in needles.cells if cell.depth is not None and getattr(cell, metric) is not None]
    if not cells:
        raise ValueError(f"heat map: no cell has a depth and a {metric}; measure single_1, for one, with generate on")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ..figures import save_figure

    tasks = list(dict.fromkeys(cell.task for cell in cells))
    images = []
    values = [getattr(cell, metric) for cell in cells]
    colours, lowest, highest = "RdYlGn", 0.0, 1.0
    if metric == "answer_nats":  # small is good
        colours, lowest, highest = "RdYlGn_r", min(values), max(values)
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(1.5 + 2.6 * len(tasks), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    depths = sorted({cell.depth for cell in cells if cell.depth is not None})
    for panel, task in zip(axes[0], tasks, strict=True):
        mine = {(c.depth, c.length): getattr(c, metric) for c in cells if c.task == task}
        lengths = sorted({length for _, length in mine})
        grid = np.array([[mine.get((depth, length), math.nan) for length in lengths] for depth in depths])
        image = panel.pcolormesh(grid, edgecolors="white", linewidth=1, cmap=colours, vmin=lowest, vmax=highest)
        images.append(image)
        panel.set_xticks(np.arange(len(lengths)) + 0.5, [str(length) for length in lengths], rotation=45)
        shown = range(0, len(depths), max(1, (len(depths) - 1) // 4))
        panel.set_yticks([i + 0.5 for i in shown], [f"{100 * depths[i]:.0f} %" for i in shown])
        panel.set(title=task, xlabel="tokens", ylim=(len(depths), 0))
    axes[0][0].set_ylabel("depth of the needle")
    figure.colorbar(images[-1], ax=axes, label=metric.replace("_", " "))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, dpi=100)
    plt.close(figure)
    return path
