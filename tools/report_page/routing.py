"""Which heads a run's tokens use: layers by heads, over the steps."""

from typing import Any

import numpy as np
from markupsafe import Markup

from . import charts
from .collect import RunView
from .panels import Panel, Section, TableCell

SHOWN = 4  # steps, from the first to the last
NUMBERS = {"effective_heads": "effective heads", "router_entropy": "router entropy", "balance": "balance"}

Record = dict[str, Any]


def routed_heads(runs: list[RunView]) -> Section:
    """Heat maps of how often each head is used, and the last step's figures by layer."""
    panels = [panel for run in runs if (panel := _panel(run)) is not None]
    note = (
        "Share of the tokens that use a head. effective heads: exp of the entropy of the routed heads' mean use, their "
        "number where all are used alike. router entropy: nats, mean over tokens. balance: the loss without its weight."
    )
    return Section("Heads", panels, note)


def _panel(run: RunView) -> Panel | None:
    steps = [record for record in run.of_kind("train") if _layers(record, "activation")]
    if not steps:
        return None
    shown = [steps[i] for i in sorted({round(x) for x in np.linspace(0, len(steps) - 1, SHOWN)})]
    images = [_maps(f"{run.name}: use of heads", shown, "activation", 1.0)]
    if _layers(steps[-1], "query_norm"):
        images.append(_maps(f"{run.name}: mean norm of queries", steps[-1:], "query_norm", None))
    rows = [
        [
            TableCell(str(layer)),
            TableCell(f"{min(used):.3f}"),
            TableCell(f"{max(x for x in used if x < 1) if min(used) < 1 else 1.0:.3f}"),
            *(TableCell(f"{steps[-1][f'layer{layer}/{name}']:.3f}") for name in NUMBERS),
        ]
        for layer, used in _layers(steps[-1], "activation").items()
    ]
    header = ["layer", "least used", "most used below 1", *NUMBERS.values()]
    return Panel(title=f"{run.name}, step {steps[-1]['step']:,}", charts=images, header=header, rows=rows)


def _layers(record: Record, name: str) -> dict[int, list[float]]:
    """{layer: a number for each head}."""
    found = {}
    for key, value in record.items():
        layer, _, what = key.partition("/")
        if what == name and layer.startswith("layer") and isinstance(value, list):
            found[int(layer.removeprefix("layer"))] = value
    return found


def _maps(title: str, records: list[Record], name: str, most: float | None) -> Markup:
    """One map for each record, layers down and heads across."""
    grids = [_layers(record, name) for record in records]
    heads = max(len(values) for grid in grids for values in grid.values())
    width, height = 0.9 + 0.16 * heads, 1.0 + 0.2 * len(grids[0])
    with charts.chart(title, max(2.4, width) * len(grids) + 0.6, height, ncols=len(grids), squeeze=False) as (
        axes,
        image,
    ):
        for axis, record, grid in zip(axes[0], records, grids, strict=True):
            cells = np.full((len(grid), heads), np.nan)
            for row, values in enumerate(grid.values()):
                cells[row, : len(values)] = values
            drawn = axis.pcolormesh(cells, vmin=0, vmax=most, cmap="viridis", edgecolors="white", linewidth=0.5)
            axis.grid(False)
            axis.set_yticks(np.arange(len(grid)) + 0.5, list(grid))
            axis.invert_yaxis()
            axis.set(title=f"step {record['step']:,}", xlabel="head")
        axes[0][0].set_ylabel("layer")
        axes[0][0].figure.colorbar(drawn, ax=list(axes[0]))
    return image[0]
