"""A recipe's `eval` section at work: what it asks for, at any step of training and at its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.console import Console

from ..eval.console import stage
from ..lm.model import HybridLM
from ..lm.model.loading import load_run
from ..lm.parts.errors import concerning
from ..lm.recipe.recipe import Recipe
from ..lm.run import Run
from ..lm.train.loop import Hook
from ..lm.train.telemetry import log_measured
from .long import PREPARE, draw

if TYPE_CHECKING:
    from ..lm.data.tokenizer import Tokenizer


class Result(Protocol):
    """What every measurement gives."""

    def save(self, path: str | Path) -> None: ...
    def values(self) -> dict[str, float]: ...
    def table(self) -> Any: ...


Measure = Callable[[HybridLM, str], Result]


@dataclass(frozen=True)
class Measurement:
    """Something to measure on models like one that `prepare` closes over, kept as RUN/eval/{checkpoint}/{name}.json.

    prepare: reads and draws all that is put to a model, raising UserError for what cannot be, and gives
    `measure(model, checkpoint)`, which leaves the model as it was. It is called once.
    """

    name: str
    prepare: Callable[[], Measure]
    folder: Path

    @cached_property
    def measure(self) -> Measure:
        return self.prepare()

    def __call__(self, model: HybridLM, step: int) -> dict[str, float]:
        """What the training loop calls: the numbers to log."""
        return self.measured(model, f"step-{step:06d}").values()

    def shown(self, model: HybridLM, checkpoint: str, console: Console) -> Result:
        """Measure, keep the file and the plot, and print the table."""
        with stage(console, f"measuring {self.name}"):
            result = self.measured(model, checkpoint)
        console.print(result.table())
        if plot := draw(result, self.folder / checkpoint):
            console.print(f"plot: {plot}", highlight=False, soft_wrap=True)
        return result

    def measured(self, model: HybridLM, checkpoint: str) -> Result:
        """Measure and keep the file."""
        result = self.measure(model, checkpoint)
        result.save(self.folder / checkpoint / f"{self.name}.json")
        return result


def measurements(recipe: Recipe, tokenizer: "Tokenizer", run: Run) -> list[Measurement]:
    """What the recipe asks for, with unknown names refused. Raises ConfigError."""
    evals = recipe.eval
    long = {"needles": evals.needles, "positions": evals.positions}
    names = [*evals.tasks, *_of_suites(evals.suites), *(name for name, config in long.items() if config)]
    tasks = [name for name in dict.fromkeys(names) if name not in long]
    found: dict[str, Callable[[], Measure]] = {}
    if tasks:
        found["tasks"] = partial(_tasks, recipe, tokenizer, tasks)
    for name in (name for name in long if name in names):
        found[name] = partial(_long, name, recipe, tokenizer)
    if evals.probes:
        found["token_probes"] = partial(_probes, recipe, tokenizer)
    return [Measurement(name, prepare, run.folder / "eval") for name, prepare in found.items()]


def prepare_all(asked: Sequence[Measurement], console: Console) -> None:
    """Prepare now, before the first step, what would else be found impossible at its first measurement.

    For the process that measures: the first one. Raises ConfigError and DataError that name the field of the recipe.
    """
    for one in asked:
        with stage(console, f"preparing {one.name}"):
            _ = one.measure


def hooks(recipe: Recipe, asked: Sequence[Measurement]) -> list[Hook]:
    """The measurements as what the training loop calls every `eval.every` steps."""
    return [Hook(one.name, recipe.eval.every, one) for one in asked if recipe.eval.every]


def measure_newest(run: Run, asked: Sequence[Measurement], console: Console) -> None:
    """Measure the newest checkpoint, print what came out, and log the numbers as the loop does."""
    if not asked:
        return
    model, checkpoint = load_run(run), run.newest_checkpoint().name
    for one in asked:
        result = one.shown(model, checkpoint, console)
        log_measured(run, int(checkpoint.removeprefix("step-")), one.name, result.values())


def _of_suites(suites: Sequence[str]) -> list[str]:
    if not suites:
        return []
    with concerning("eval.suites"):
        from ..eval.benchmarks.suites import measurements as members

        return [name for suite in suites for name in members(suite)]


def _weightless(recipe: Recipe) -> HybridLM:
    """The model that will be trained, without its numbers."""
    with torch.device("meta"):
        return HybridLM(recipe.model)


def _tasks(recipe: Recipe, tokenizer: "Tokenizer", tasks: list[str]) -> Measure:
    asked = [f"eval.{field}" for field in ("tasks", "suites") if getattr(recipe.eval, field)]
    context = recipe.model.context
    with concerning(" and ".join(asked)):
        from ..eval.benchmarks.catalogue import Options
        from ..eval.benchmarks.evaluation import Benchmarks
        from ..eval.benchmarks.harness import HybridHarness

        options = Options(Path(recipe.data.cache).expanduser(), tokenizer)
        benchmarks = Benchmarks.build(tasks, options, recipe.eval.limit)
        benchmarks.rehearse(_weightless(recipe), context)
    budget = max(recipe.eval.batch_tokens, context)  # one input has to fit

    def measure(model: HybridLM, checkpoint: str) -> Result:
        harness = HybridHarness(model, tokenizer, max_length=context, batch_tokens=budget, seed=recipe.seed)
        return benchmarks.score(harness, checkpoint)

    return measure


def _long(name: str, recipe: Recipe, tokenizer: "Tokenizer") -> Measure:
    return PREPARE[name](_weightless(recipe), recipe, tokenizer, recipe.eval.batch_tokens)


def _probes(recipe: Recipe, tokenizer: "Tokenizer") -> Measure:
    from ..eval.synthetic.token_probes import draw_probes, measure_probes

    drawn = draw_probes(recipe.eval.probes, recipe.model, recipe.seed)
    how = {"bos_id": tokenizer.bos_id, "batch_tokens": recipe.eval.batch_tokens}
    return lambda model, checkpoint: measure_probes(model, drawn, checkpoint=checkpoint, **how)
