"""Pictures of a sweep: accuracy against state bytes, one curve per mixer, and against the share of full attention."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .sweep import Best, Line, best

MARKERS = "osD^vP*Xhd<>"


def plot_tradeoff(lines: list[Line], path: Path) -> list[Path]:
    """Accuracy against state bytes at each variant's best learning rate; a point is a variant, a curve a mixer.

    Bars span the seeds. Writes `path` with the suffixes .png and .svg and returns both.
    """
    return _plot(lines, path, "state of one sequence [bytes, float32]", lambda first: first["state_bytes"], log=True)


def plot_ratio(lines: list[Line], path: Path) -> list[Path]:
    """Accuracy against the share of layers whose state grows, those of full attention; otherwise as `plot_tradeoff`.

    A grey line joins the means of all variants of equal share.
    """
    return _plot(lines, path, "share of layers with full attention", full_share, log=False)


def full_share(line: Line) -> float:
    """Attention layers over all that mix further than a convolution reaches."""
    layers = {name: n for name, n in line["layers"].items() if name != "gated_conv"}
    return layers.get("attention", 0) / max(sum(layers.values()), 1)


def _means(curves: dict[str, list[tuple[float, Best]]]) -> tuple[list[float], list[float]]:
    """Mean accuracy over all variants at the same x: a line from share to share."""
    at: dict[float, list[float]] = {}
    for x, chosen in (point for points in curves.values() for point in points):
        at.setdefault(x, []).extend(chosen.values("accuracy"))
    return sorted(at), [statistics.fmean(at[x]) for x in sorted(at)]


def _plot(lines: list[Line], path: Path, label: str, x: Callable[[Line], float], log: bool) -> list[Path]:
    from matplotlib.figure import Figure

    from ..figures import save_figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes: Any = figure.add_subplot()
    curves: dict[str, list[tuple[float, Best]]] = {}
    for chosen in best(lines).values():
        first = chosen.lines[0]
        curves.setdefault(first["mixer"], []).append((x(first), chosen))
    for i, (mixer, points) in enumerate(curves.items()):
        points = sorted(points, key=lambda point: point[0])
        accuracies = [point.values("accuracy") for _, point in points]
        means = [statistics.fmean(values) for values in accuracies]
        bars = [[m - min(v) for m, v in zip(means, accuracies, strict=True)]]
        bars += [[max(v) - m for m, v in zip(means, accuracies, strict=True)]]
        axes.errorbar(
            [at for at, _ in points],
            means,
            yerr=bars,
            label=mixer,
            color=f"C{i % 10}",
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
            capsize=3,
        )
    if log:
        axes.set_xscale("log", base=2)
    else:
        axes.plot(*_means(curves), color="0.7", linewidth=1, zorder=0)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy, mean over slices")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        save_figure(figure, file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written
