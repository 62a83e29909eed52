"""Curves of a model: a file to keep, a table to read, a plot to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.table import Table

from ...lm.recipe.eval import Mode
from ..saved import Saved


@dataclass(frozen=True)
class Bucket:
    """Tokens at positions start..end - 1 of their stretch: mean of -log p in nats, its standard error, their number."""

    start: int
    end: int
    nats: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """One text in one mode. nats: sum of -log p over all tokens. beyond: tokens predicted from more of them than the
    model's positions were trained for. stride: new tokens per window of `sliding`; None in other modes and of a curve
    kept by a version that did not write it down."""

    text: str
    mode: Mode
    window: int
    bytes: int
    tokens: int
    nats: float
    bits_per_byte: float
    beyond: int
    buckets: list[Bucket]
    stride: int | None = None

    @property
    def how(self) -> str:
        """In words: sliding 512, 256 new."""
        return f"{self.mode} {self.window}" + ("" if self.stride is None else f", {self.stride} new")


@dataclass(frozen=True)
class Positions(Saved):
    """The curves of one model."""

    kind: ClassVar[str] = "positions"

    curves: list[Curve]
    checkpoint: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        content = cls.read(path)
        curves = [Curve(**{**c, "buckets": [Bucket(**b) for b in c["buckets"]]}) for c in content["curves"]]
        return cls(curves, content["checkpoint"])

    def asked(self) -> Any:
        return [(c.text, c.how, [(bucket.start, bucket.end, bucket.n) for bucket in c.buckets]) for c in self.curves]

    def values(self) -> dict[str, float]:
        """The numbers to log: bits per byte of each curve, nats per token of its first and last bucket."""
        values = {}
        for curve in self.curves:
            name = f"{curve.text}/{curve.mode}"
            values[f"{name}/bits_per_byte"] = curve.bits_per_byte
            values[f"{name}/first_nats"], values[f"{name}/last_nats"] = curve.buckets[0].nats, curve.buckets[-1].nats
        return values

    def table(self) -> Table:
        """Nats per token by position, a column for each curve."""
        table = Table(title="nats per token by position (± standard error)", title_justify="left")
        table.add_column("positions")
        for curve in self.curves:
            table.add_column(f"{curve.text}\n{curve.how}", justify="right")
        found = [{(b.start, b.end): f"{b.nats:.3f}" + _plus_minus(b) for b in curve.buckets} for curve in self.curves]
        for span in sorted({span for cells in found for span in cells}):
            table.add_row(f"{span[0]}-{span[1] - 1}", *(cells.get(span, "") for cells in found))
        table.add_section()
        table.add_row("bits per byte", *(f"{curve.bits_per_byte:.4f}" for curve in self.curves))
        if any(curve.beyond for curve in self.curves):
            table.add_row("tokens beyond the model's length", *(f"{curve.beyond}" for curve in self.curves))
        return table

    def plot(self, folder: Path) -> Path | None:
        """All curves in folder/positions.png."""
        return plot_positions(self, folder / "positions.png")


def _plus_minus(bucket: Bucket) -> str:
    return "" if bucket.stderr is None else f" ± {bucket.stderr:.3f}"


def plot_positions(positions: Positions, path: str | Path) -> Path:
    """Nats per token against position, a line with its standard error for each curve; a .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ..figures import save_figure

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for curve in positions.curves:
        middle = [(bucket.start + bucket.end) / 2 for bucket in curve.buckets]
        error = [bucket.stderr or 0.0 for bucket in curve.buckets]
        label = f"{curve.text}, {curve.how}"
        axes.errorbar(middle, [bucket.nats for bucket in curve.buckets], error, label=label, marker=".", capsize=2)
    axes.set(xlabel="position", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, dpi=100)
    plt.close(figure)
    return path
