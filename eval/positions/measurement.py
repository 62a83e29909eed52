"""The recipe's `eval.positions`, or the one by default, as a measurement."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from tqdm import tqdm

from ...lm.parts.errors import ConfigError, concerning
from ...lm.recipe.eval import PositionsConfig
from ...lm.recipe.recipe import Recipe
from ..texts import read_text
from .measure import measure_positions
from .reading import Reading, Stretches, modes_of
from .results import Positions

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.model import HybridLM


@dataclass(frozen=True)
class PositionsMeasurement:
    """Perplexity by position in a text, a curve for every mode."""

    name: ClassVar[str] = "positions"

    recipe: Recipe
    tokenizer: "Tokenizer"
    batch_tokens: int
    progress: bool = False

    @property
    def config(self) -> PositionsConfig:
        return self.recipe.eval.positions or PositionsConfig()

    @property
    def max_tokens(self) -> int:
        return self.config.max_tokens or 8 * self.recipe.model.context

    @cached_property
    def stretches(self) -> Stretches:
        config = self.config
        with concerning("eval.positions.text"):
            text = read_text(config.text, self.recipe.data.cache)
        with concerning("eval.positions"):
            found = Stretches.cut(
                self.tokenizer, text, max_tokens=self.max_tokens, blocks=config.blocks, name=config.text
            )
            if config.max_tokens and found.longest < config.max_tokens:
                raise ConfigError(
                    f"max_tokens: {config.max_tokens}, but the text {config.text!r} has {found.longest} tokens; use at "
                    "most that, or give a longer text"
                )
        return found

    def readings(self, model: "HybridLM") -> list[Reading]:
        """The modes that the recipe names, or all that the model has."""
        config = self.config
        window = config.window or self.recipe.model.context
        return [
            Reading(mode, window, config.bucket or window, config.stride, config.beyond)
            for mode in config.modes or modes_of(model, self.max_tokens)
        ]

    def prepare(self) -> None:
        """Read the text and cut its tokens into stretches."""
        _ = self.stretches

    def rehearse(self, model: "HybridLM") -> None:
        """Hold every mode against the model."""
        stretches = self.stretches
        with concerning("eval.positions"):
            for reading in self.readings(model):
                reading.check(model, stretches)

    def run(self, model: "HybridLM", checkpoint: str) -> Positions:
        readings = self.readings(model)
        curves = [
            measure_positions(model, self.stretches, reading, batch_tokens=self.batch_tokens)
            for reading in tqdm(readings, "positions", disable=not self.progress)
        ]
        return Positions(curves, checkpoint)
