"""The recipe's `eval.needles`, or needles by default, as a measurement."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ...lm.parts.errors import concerning
from ...lm.recipe.eval import NeedlesConfig
from ...lm.recipe.recipe import Recipe
from ..texts import read_text
from .measure import Questions, measure_needles
from .results import Needles

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.model import HybridLM


@dataclass(frozen=True)
class NeedlesMeasurement:
    """Needles by length and depth. The prompts are drawn once and read from the recipe's cache from then on."""

    name: ClassVar[str] = "needles"

    recipe: Recipe
    tokenizer: "Tokenizer"
    batch_tokens: int
    progress: bool = False

    @property
    def config(self) -> NeedlesConfig:
        return self.recipe.eval.needles or NeedlesConfig()

    @cached_property
    def questions(self) -> Questions:
        config, cache = self.config, self.recipe.data.cache
        with concerning("eval.needles.haystack"):
            haystack = read_text(config.haystack, cache)
        return Questions(
            config.tasks,
            config.lengths or [self.recipe.model.context * times for times in (1, 2, 4)],
            haystack,
            depths=config.depths,
            samples=config.samples,
            seed=self.recipe.seed,
            beyond=config.beyond,
            cache=cache,
            name=config.haystack,
        )

    def prepare(self) -> None:
        """Read the haystack."""
        _ = self.questions

    def rehearse(self, model: "HybridLM") -> None:
        """Draw every prompt."""
        questions = self.questions
        with concerning("eval.needles"):
            for _drawn in questions.prompts(model.config, self.tokenizer):
                pass

    def run(self, model: "HybridLM", checkpoint: str) -> Needles:
        return measure_needles(
            model,
            self.tokenizer,
            self.questions,
            batch_tokens=self.batch_tokens,
            generate=self.config.generate,
            checkpoint=checkpoint,
            progress=self.progress,
        )
