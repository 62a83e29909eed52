"""How a run does on long inputs: needles by length and depth, perplexity by position."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..lm.parts.errors import ConfigError, concerning
from ..lm.recipe.eval import NeedlesConfig, PositionsConfig
from ..lm.recipe.recipe import Recipe

if TYPE_CHECKING:
    from ..eval.needles import Needles
    from ..eval.positions.measure import Positions
    from ..lm.data.tokenizer import Tokenizer
    from ..lm.model import HybridLM


def prepare_needles(
    model: "HybridLM", recipe: Recipe, tokenizer: "Tokenizer", batch_tokens: int
) -> "Callable[[HybridLM, str], Needles]":
    """Draws the prompts that the recipe describes, or those by default, for models like this one.

    What comes back asks a model of a checkpoint's name, whose mode and the random state are left as they were; it reads
    the prompts that were drawn from the recipe's cache. Raises ConfigError and DataError that name the field.
    """
    from ..eval.needles import measure_needles, prompts_for
    from ..eval.texts import read_text

    config = recipe.eval.needles or NeedlesConfig()
    with concerning("eval.needles.haystack"):
        haystack = read_text(config.haystack, recipe.data.cache)
    what = {
        "tasks": config.tasks,
        "lengths": config.lengths or [recipe.model.context * times for times in (1, 2, 4)],
        "depths": config.depths,
        "samples": config.samples,
        "haystack": haystack,
        "seed": recipe.seed,
        "beyond": config.beyond,
        "cache": recipe.data.cache,
    }
    with concerning("eval.needles"):
        for _drawn in prompts_for(model.config, tokenizer, **what):
            pass
    how = {"haystack_name": config.haystack, "batch_tokens": batch_tokens, "generate": config.generate}
    return lambda model, checkpoint: measure_needles(model, tokenizer, **what, **how, checkpoint=checkpoint)


def prepare_positions(
    model: "HybridLM", recipe: Recipe, tokenizer: "Tokenizer", batch_tokens: int
) -> "Callable[[HybridLM, str], Positions]":
    """Reads the text that the recipe describes, or the one by default, for models like this one.

    What comes back measures a model of a checkpoint's name, a curve for every mode; nothing about the model changes.
    Raises ConfigError and DataError that name the field.
    """
    from ..eval.positions.measure import Reading, Stretches, joined, measure_positions, modes_of
    from ..eval.texts import read_text

    config = recipe.eval.positions or PositionsConfig()
    window = config.window or recipe.model.context
    max_tokens = config.max_tokens or 8 * recipe.model.context
    with concerning("eval.positions.text"):
        text = read_text(config.text, recipe.data.cache)
    with concerning("eval.positions"):
        stretches = Stretches.cut(tokenizer, text, max_tokens=max_tokens, blocks=config.blocks, name=config.text)
        if config.max_tokens and stretches.longest < max_tokens:
            raise ConfigError(
                f"max_tokens: {max_tokens}, but the text {config.text!r} has {stretches.longest} tokens; use at most "
                "that, or give a longer text"
            )
        readings = [
            Reading(mode, window, config.bucket or window, config.stride, config.beyond)
            for mode in config.modes or modes_of(model, max_tokens)
        ]
        for reading in readings:
            reading.check(model, stretches)
    return lambda model, checkpoint: joined(
        measure_positions(model, stretches, reading, batch_tokens=batch_tokens, checkpoint=checkpoint)
        for reading in readings
    )


PREPARE = {"needles": prepare_needles, "positions": prepare_positions}
"""By name in a suite."""


def draw(result: object, folder: Path) -> Path | None:
    """The plot of needles with depths, or of positions, beside their file; None for what has none."""
    from ..eval.needles import Needles, plot_heat_map
    from ..eval.positions.measure import Positions, plot_positions

    if isinstance(result, Positions):
        return plot_positions(result, folder / "positions.png")
    if isinstance(result, Needles) and any(cell.depth is not None for cell in result.cells):
        written = all(cell.score is not None for cell in result.cells)
        return plot_heat_map(result, folder / "needles.png", "score" if written else "answer_accuracy")
    return None
