"""Figures are written here, so that names in them stay what they are."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text


def save_figure(figure: Figure, target: Any, **how: Any) -> None:
    """`figure.savefig`, for a file or a path; titles, labels and legends are text: a name with $ is no formula."""
    for text in _texts(figure):
        text.set_parse_math(False)
    figure.savefig(target, **how)


def _texts(figure: Figure) -> list[Text]:
    """All but the ticks' numbers, whose powers of ten are formulas."""
    texts = [*figure.texts]
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *(legend.get_texts() if legend else ())]
    return texts
