"""What is measured on a model: one list for the training loop, for a run's end and for `hybridlm eval`.

A measurement takes four steps: it is prepared, rehearsed, run on any number of models, and each run gives a result.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from ..lm.model import HybridLM
from ..lm.parts.errors import concerning
from ..lm.recipe.model import BaseModelConfig
from ..lm.recipe.recipe import Recipe
from ..lm.train.loop import Hook
from .benchmarks.measurement import Scoring, TasksMeasurement
from .needles.measurement import NeedlesMeasurement
from .positions.measurement import PositionsMeasurement
from .synthetic.token_probes import ProbesMeasurement

if TYPE_CHECKING:
    from ..lm.data.tokenizer import Tokenizer

LONG = {one.name: one for one in (NeedlesMeasurement, PositionsMeasurement)}
"""What is no lm-eval task, by name in a list of tasks or in a suite."""


class Result(Protocol):
    """What every measurement gives."""

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""

    def values(self) -> dict[str, float]:
        """The numbers to log."""
        ...

    def table(self) -> Any:
        """What a terminal shows."""

    def plot(self, folder: Path) -> Path | None:
        """Draw what there is to see into `folder`, and say where it is; None where there is nothing."""


class Measurement(Protocol):
    """One thing to measure on models of a recipe's kind.

    name: of its file, RUN/eval/{checkpoint}/{name}.json, and in the log.
    """

    name: ClassVar[str]

    def prepare(self) -> None:
        """Read and draw what is put to a model. Raises UserError, naming the field, for what cannot be."""

    def rehearse(self, model: HybridLM) -> None:
        """Do everything but running the model, whose weights are not looked at. Raises UserError as running would."""

    def run(self, model: HybridLM, checkpoint: str) -> Result:
        """Measure a model, which stays as it was; checkpoint: a name for its weights."""
        ...


def measurements(
    names: Iterable[str], recipe: Recipe, tokenizer: "Tokenizer", scoring: Scoring, field: str = ""
) -> list[Measurement]:
    """By name, in the order in which they are taken: all benchmarks as one, then needles, then positions.

    What needles and positions are like stands in the recipe. field: see TasksMeasurement.
    """
    names = dict.fromkeys(names)
    tokens = max(recipe.eval.batch_tokens, scoring.max_length)
    if scoring.batch_tokens != "auto":
        tokens = scoring.batch_tokens
    tasks = [name for name in names if name not in LONG]
    found: list[Measurement] = []
    if tasks:
        found.append(TasksMeasurement(tasks, tokenizer, recipe.data.cache, scoring, field))
    found.extend(kind(recipe, tokenizer, tokens, scoring.progress) for name, kind in LONG.items() if name in names)
    return found


def measurements_of(recipe: Recipe, tokenizer: "Tokenizer") -> list[Measurement]:
    """What the recipe's `eval` section asks for. Raises ConfigError for an unknown suite."""
    evals, context = recipe.eval, recipe.model.context
    names = [*evals.tasks, *_of_suites(evals.suites), *(name for name in LONG if getattr(evals, name))]
    field = " and ".join(f"eval.{name}" for name in ("tasks", "suites") if getattr(evals, name))
    tokens = max(evals.batch_tokens, context)  # one input has to fit
    found = measurements(names, recipe, tokenizer, Scoring(context, tokens, evals.limit, seed=recipe.seed), field)
    if evals.probes:
        found.append(ProbesMeasurement(recipe, tokenizer, tokens))
    return found


def hooks(recipe: Recipe, asked: Sequence[Measurement], folder: Path) -> list[Hook]:
    """The measurements as what the training loop calls every `eval.every` steps; results are kept below `folder`."""

    def hook(one: Measurement) -> Hook:
        return Hook(
            one.name,
            recipe.eval.every,
            lambda model, step: measured(one, model, f"step-{step:06d}", folder).values(),
        )

    return [hook(one) for one in asked if recipe.eval.every]


def measured(one: Measurement, model: HybridLM, checkpoint: str, folder: Path) -> Result:
    """Run a measurement and keep its result as {folder}/{checkpoint}/{name}.json."""
    result = one.run(model, checkpoint)
    result.save(folder / checkpoint / f"{one.name}.json")
    return result


def weightless(config: BaseModelConfig) -> HybridLM:
    """A model to rehearse on: without its numbers, on the meta device."""
    with torch.device("meta"):
        return HybridLM(config)


def _of_suites(suites: Sequence[str]) -> list[str]:
    if not suites:
        return []
    with concerning("eval.suites"):
        from .benchmarks.suites import members_of

        return [name for suite in suites for name in members_of(suite)]
