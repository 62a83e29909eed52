"""How a run does on long inputs: needles by length and depth, perplexity by position."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..lm.config import Recipe
from ..lm.eval_config import NeedlesConfig, PositionsConfig

if TYPE_CHECKING:
    from ..eval.needles import Needles
    from ..eval.positions import Positions
    from ..lm.data.tokenizer import Tokenizer
    from ..lm.model import HybridLM


def long_measurement(
    name: str, recipe: Recipe, tokenizer: "Tokenizer", batch_tokens: int
) -> "Callable[[HybridLM, str], Needles | Positions]":
    """`needles` or `positions` of a model and its checkpoint's name, as the recipe describes them or by default."""
    if name == "needles":
        needles = recipe.eval.needles or NeedlesConfig()
        return lambda model, checkpoint: needles_of(model, tokenizer, recipe, needles, checkpoint, batch_tokens)
    positions = recipe.eval.positions or PositionsConfig()
    return lambda model, checkpoint: positions_of(model, tokenizer, recipe, positions, checkpoint, batch_tokens)


def draw(result: object, folder: Path) -> Path | None:
    """The plot of needles with depths, or of positions, beside their file; None for what has none."""
    from ..eval.needles import Needles, plot_heat_map
    from ..eval.positions import Positions, plot_positions

    if isinstance(result, Positions):
        return plot_positions(result, folder / "positions.png")
    if isinstance(result, Needles) and any(cell.depth is not None for cell in result.cells):
        written = all(cell.score is not None for cell in result.cells)
        return plot_heat_map(result, folder / "needles.png", "score" if written else "answer_accuracy")
    return None


def needles_of(
    model: "HybridLM",
    tokenizer: "Tokenizer",
    recipe: Recipe,
    config: NeedlesConfig,
    checkpoint: str,
    batch_tokens: int,
) -> "Needles":
    """Needles in `model` as it stands; its mode and the random state are left as they were."""
    from ..eval.needles import measure_needles
    from ..eval.texts import read_text

    return measure_needles(
        model,
        tokenizer,
        tasks=config.tasks,
        lengths=config.lengths or [recipe.model.context * times for times in (1, 2, 4)],
        depths=config.depths,
        samples=config.samples,
        haystack=read_text(config.haystack, recipe.data.cache),
        haystack_name=config.haystack,
        seed=recipe.seed,
        batch_tokens=batch_tokens,
        generate=config.generate,
        beyond=config.beyond,
        cache=recipe.data.cache,
        checkpoint=checkpoint,
    )


def positions_of(
    model: "HybridLM",
    tokenizer: "Tokenizer",
    recipe: Recipe,
    config: PositionsConfig,
    checkpoint: str,
    batch_tokens: int,
) -> "Positions":
    """Perplexity by position in `model` as it stands, a curve for every mode; nothing about the model changes."""
    from ..eval.positions import joined, measure_positions, modes_of
    from ..eval.texts import read_text

    window = config.window or recipe.model.context
    max_tokens = config.max_tokens or 8 * recipe.model.context
    text = read_text(config.text, recipe.data.cache)
    return joined(
        measure_positions(
            model,
            tokenizer,
            text,
            mode=mode,
            window=window,
            stride=config.stride,
            buckets=config.bucket or window,
            max_tokens=max_tokens,
            blocks=config.blocks,
            text_name=config.text,
            batch_tokens=batch_tokens,
            beyond=config.beyond,
            checkpoint=checkpoint,
        )
        for mode in config.modes or modes_of(model, max_tokens)
    )
