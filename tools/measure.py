"""Measurements on the terminal: what is being prepared, what came out."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..eval.console import stage
from ..eval.measurement import Measurement, Result, measured
from ..lm.model import HybridLM


def prepare_all(asked: Sequence[Measurement], model: HybridLM, console: Console) -> None:
    """Prepare and rehearse now what would else be found impossible at its first run. The model may have no weights.

    For the processes that measure. Raises ConfigError and DataError that name the field of the recipe.
    """
    for one in asked:
        with stage(console, f"preparing {one.name}"):
            one.prepare()
            one.rehearse(model)


def show(one: Measurement, model: HybridLM, checkpoint: str, folder: Path, doing: str, console: Console) -> Result:
    """Measure, keep the file and the plot in {folder}/{checkpoint}, and print the table."""
    with stage(console, doing):
        result = measured(one, model, checkpoint, folder)
    console.print(result.table())
    if plot := result.plot(folder / checkpoint):
        console.print(f"plot: {plot}", highlight=False, markup=False, soft_wrap=True)
    return result
