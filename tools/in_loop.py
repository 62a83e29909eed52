"""A recipe's `eval` section at work: what it asks for, at any step of training and at its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from ..lm.config import Recipe
from ..lm.console import stage
from ..lm.model import HybridLM
from ..lm.run import Run
from ..lm.train.loop import Hook
from ..lm.train.telemetry import log_measured
from .long import draw, long_measurement

if TYPE_CHECKING:
    from ..lm.data.tokenizer import Tokenizer


class Result(Protocol):
    """What every measurement gives."""

    def save(self, path: str | Path) -> None: ...
    def values(self) -> dict[str, float]: ...
    def table(self) -> Any: ...


@dataclass(frozen=True)
class Measurement:
    """`measure(model, checkpoint)`, kept as RUN/eval/{checkpoint}/{name}.json; the model is left as it was."""

    name: str
    measure: Callable[[HybridLM, str], Result]
    folder: Path

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
    """What the recipe asks for. Names and options are checked here, before the first step rather than at the last.

    Raises ConfigError.
    """
    evals = recipe.eval
    long = {"needles": evals.needles, "positions": evals.positions}
    names = [*evals.tasks, *_of_suites(evals.suites), *(name for name, config in long.items() if config)]
    tasks = [name for name in dict.fromkeys(names) if name not in long]
    found: list[tuple[str, Callable[[HybridLM, str], Result]]] = []
    if tasks:
        found.append(("tasks", _tasks(recipe, tokenizer, tasks)))
    for name in (name for name in long if name in names):
        found.append((name, long_measurement(name, recipe, tokenizer, evals.batch_tokens)))
    if evals.probes:
        found.append(("token_probes", _probes(recipe, tokenizer)))
    return [Measurement(name, measure, run.folder / "eval") for name, measure in found]


def hooks(recipe: Recipe, asked: Sequence[Measurement]) -> list[Hook]:
    """The measurements as what the training loop calls every `eval.every` steps."""
    return [Hook(one.name, recipe.eval.every, one) for one in asked if recipe.eval.every]


def measure_newest(run: Run, asked: Sequence[Measurement], console: Console) -> None:
    """Measure the newest checkpoint, print what came out, and log the numbers as the loop does."""
    if not asked:
        return
    model, checkpoint = run.load_model(), run.newest_checkpoint().name
    for one in asked:
        result = one.shown(model, checkpoint, console)
        log_measured(run, int(checkpoint.removeprefix("step-")), one.name, result.values())


def _of_suites(suites: Sequence[str]) -> list[str]:
    if not suites:
        return []
    from ..eval.suites import measurements as members

    return [name for suite in suites for name in members(suite)]


def _tasks(recipe: Recipe, tokenizer: "Tokenizer", tasks: list[str]) -> Callable[[HybridLM, str], Result]:
    from ..eval.catalogue import expand
    from .score import task_scores

    expand(tasks)
    return lambda model, at: task_scores(model, tokenizer, recipe, tasks, recipe.eval.limit, at)


def _probes(recipe: Recipe, tokenizer: "Tokenizer") -> Callable[[HybridLM, str], Result]:
    from ..eval.token_probes import measure_probes, parse_slices

    slices = parse_slices(recipe.eval.probes, recipe.model.vocab_size)
    how = {"bos_id": tokenizer.bos_id, "seed": recipe.seed, "batch_tokens": recipe.eval.batch_tokens}
    return lambda model, at: measure_probes(model, slices, checkpoint=at, **how)
