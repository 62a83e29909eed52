"""How a run does on long inputs: needles by length and depth, perplexity by position."""

from typing import TYPE_CHECKING

from rich.console import Console

from ..lm.config import Recipe
from ..lm.console import stage
from ..lm.eval_config import NeedlesConfig, PositionsConfig
from ..lm.run import Run

if TYPE_CHECKING:
    from ..eval.needles import Needles
    from ..eval.positions import Positions
    from ..lm.data.tokenizer import Tokenizer
    from ..lm.model import HybridLM


def run_needles(run: Run, config: NeedlesConfig, console: Console, *, batch_tokens: int = 8192) -> "Needles":
    """Needles in the newest checkpoint: prints the table, keeps RUN/eval/{checkpoint}/needles.json and .png."""
    from ..eval.needles import plot_heat_map

    folder = run.folder / "eval" / run.newest_checkpoint().name
    with stage(console, f"needles: {', '.join(config.tasks)}"):
        needles = needles_of(run.load_model(), run.tokenizer(), run.recipe, config, folder.name, batch_tokens)
    needles.save(folder / "needles.json")
    console.print(needles.table())
    if any(cell.depth is not None for cell in needles.cells):
        metric = "score" if config.generate else "answer_accuracy"
        plot = plot_heat_map(needles, folder / "needles.png", metric)
        console.print(f"heat map: {plot}", highlight=False, soft_wrap=True)
    return needles


def run_positions(run: Run, config: PositionsConfig, console: Console, *, batch_tokens: int = 8192) -> "Positions":
    """Perplexity by position of the newest checkpoint: prints it, keeps RUN/eval/{checkpoint}/positions.json, .png."""
    from ..eval.positions import plot_positions

    folder = run.folder / "eval" / run.newest_checkpoint().name
    with stage(console, f"perplexity by position in {config.text}"):
        positions = positions_of(run.load_model(), run.tokenizer(), run.recipe, config, folder.name, batch_tokens)
    positions.save(folder / "positions.json")
    console.print(positions.table())
    console.print(f"plot: {plot_positions(positions, folder / 'positions.png')}", highlight=False, soft_wrap=True)
    return positions


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
