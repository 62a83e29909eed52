"""The page's charts, each an image element with its SVG inside: nothing to load, nothing to collide."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup

from ...eval.console import binary
from ...eval.figures import save_figure
from ..records import smooth

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#3b6fb6", "#d1603d", "#3d8f5f", "#8b5fbf", "#b8902f", "#c0508a", "#4aa3a2", "#6b6b6b")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "hybridlm",  # the same page twice is the same bytes
}

Points = Sequence[tuple[float, float]]


@contextmanager
def chart(description: str, width: float, height: float, **grid: Any) -> Iterator[tuple[Any, list[Markup]]]:
    """Axes to draw on; afterwards the second value holds the image. The description is its alternative text."""
    image: list[Markup] = []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained", **grid)
        try:
            yield axes, image
            file = io.BytesIO()
            save_figure(figure, file, format="svg", metadata={"Date": None})
            data = base64.b64encode(file.getvalue()).decode()
            image.append(Markup('<img src="data:image/svg+xml;base64,{}" alt="{}">').format(data, description))
        finally:
            plt.close(figure)


def loss_chart(curves: dict[str, dict[str, Points]], rates: dict[str, Points]) -> Markup:
    """Loss and learning rate against millions of tokens; curves: {run: {"train" or a validation set: points}}."""
    with chart("loss against tokens", 9, 4.6, nrows=2, sharex=True, height_ratios=(4, 1)) as ((loss, rate), image):
        for colour, (run, sets) in zip(_cycle(COLOURS), curves.items(), strict=False):
            for marker, (name, points) in zip(_cycle("osv^D"), sets.items(), strict=False):
                if not points:
                    continue
                x, y = zip(*points, strict=True)
                if name == "train":
                    loss.plot(x, y, color=colour, alpha=0.2, linewidth=0.7)
                    loss.plot(x, smooth(list(y)), color=colour, label=f"{run}: train")
                else:
                    loss.plot(x, y, marker, color=colour, markersize=5, label=f"{run}: {name}")
            if points := rates.get(run):
                rate.plot(*zip(*points, strict=True), color=colour)
        loss.set(ylabel="nats per token")
        loss.legend(ncols=2)
        rate.set(xlabel="tokens (millions)", ylabel="lr")
    return image[0]


def line_chart(
    description: str, curves: dict[str, Points], xlabel: str, ylabel: str, *, log_x: bool = False, width: float = 9
) -> Markup:
    """One line per name."""
    with chart(description, width, 0.38 * width) as (axes, image):
        for colour, (name, points) in zip(_cycle(COLOURS), curves.items(), strict=False):
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=name)
        if log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend(ncols=2)
    return image[0]


def heat_map(title: str, cells: list[dict[str, Any]]) -> Markup:
    """Score by depth (down) and length (across), green for found and red for missed, the figure in each cell."""
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    grid = np.full((len(depths), len(lengths)), np.nan)
    for cell in cells:
        grid[depths.index(cell["depth"]), lengths.index(cell["length"])] = cell["score"]
    size = (1.6 + 0.62 * len(lengths), 1.1 + 0.3 * len(depths))
    with chart(f"{title}: score by depth and length", *size) as (axes, image):
        axes.pcolormesh(grid, vmin=0, vmax=1, cmap="RdYlGn", edgecolors="white", linewidth=1)
        axes.grid(False)
        axes.set_xticks(np.arange(len(lengths)) + 0.5, [f"{length:,}" for length in lengths])
        axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{100 * depth:.0f} %" for depth in depths])
        axes.invert_yaxis()
        if len(depths) <= 12:
            for (row, column), score in np.ndenumerate(grid):
                if not np.isnan(score):
                    colour = "white" if abs(score - 0.5) > 0.35 else "black"  # the map is dark at both its ends
                    figure = f"{100 * score:.0f}"
                    axes.text(column + 0.5, row + 0.5, figure, ha="center", va="center", fontsize=8, color=colour)
        axes.set(title=title, xlabel="tokens", ylabel="depth")
    return image[0]


def trade_off(curves: dict[str, list[tuple[float, float, float]]]) -> Markup:
    """Accuracy with its spread against state bytes; curves: {mixer: [(bytes, mean, standard deviation)]}."""
    with chart("accuracy against state bytes", 9, 4.2) as (axes, image):
        for colour, marker, (mixer, points) in zip(_cycle(COLOURS), _cycle("osv^DPX*"), curves.items(), strict=False):
            x, y, error = zip(*sorted(points), strict=True)
            axes.errorbar(x, y, error, marker=marker, markersize=5, color=colour, capsize=2, label=mixer)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda size, _position: binary(size))
        axes.set(xlabel="decoding state", ylabel="accuracy", ylim=(-0.02, 1.04))
        axes.legend(ncols=2)
    return image[0]


def _cycle(values: Sequence[str]) -> Iterator[str]:
    while True:
        yield from values
