"""Synthetic tasks put to a language model as it is: does it already look things up in strings without a meaning?

The task's id i becomes token vocab_size - task.vocab_size + i, behind what prompts begin with, BOS mostly: the last
pieces of a vocabulary, whose first places belong to special tokens and bytes. Among the task's tokens, the likeliest
counts as the answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from rich.table import Table

from ...lm.parts.errors import ConfigError
from ..forward.long_context import check_length
from ..forward.scoring import inference
from ..saved import Saved

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.model import HybridLM
    from ...lm.recipe.model import BaseModelConfig
    from ...lm.recipe.recipe import Recipe
    from .task import Examples, Task


@dataclass(frozen=True)
class Probed:
    """One slice. accuracy: mean share of the answers that are right; exact: share of the examples with no other."""

    label: str
    task: str
    accuracy: float
    exact: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class TokenProbes(Saved):
    """All slices of one model."""

    kind: ClassVar[str] = "token_probes"

    slices: list[Probed]
    checkpoint: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        content = cls.read(path)
        return cls([Probed(**one) for one in content["slices"]], content["checkpoint"])

    def asked(self) -> Any:
        return [(one.label, one.n) for one in self.slices]

    def values(self) -> dict[str, float]:
        """The numbers to log."""
        return {f"{one.label}/accuracy": one.accuracy for one in self.slices}

    def table(self) -> Table:
        """One row per slice."""
        table = Table(title="token-level probes", title_justify="left")
        table.add_column("slice")
        for column in ("accuracy", "± stderr", "exact", "n"):
            table.add_column(column, justify="right")
        for one in self.slices:
            stderr = "-" if one.stderr is None else f"{one.stderr:.3f}"
            table.add_row(one.label, f"{one.accuracy:.3f}", stderr, f"{one.exact:.3f}", str(one.n))
        return table


class Probe(NamedTuple):
    """A task, and the examples of it that are put to every model."""

    task: "Task"
    examples: "Examples"


def draw_probes(given: Sequence[dict[str, Any]], config: "BaseModelConfig", seed: int = 0) -> list[Probe]:
    """Examples of slices as a recipe writes them, {task: mqar, examples: 100, ...}, for models of this configuration.

    Raises ConfigError for an unknown task or option, a task on vectors, and one whose vocabulary or length the model
    cannot read.
    """
    from .recipe import Slice

    slices = [Slice.parse(one, where=f"eval.probes[{i}]") for i, one in enumerate(given)]
    for i, one in enumerate(slices):
        task, where = one.task, f"eval.probes[{i}]"
        if task.input_dim is not None or task.readout(1) is not None:
            raise ConfigError(f"{where}: {task.label} is not about tokens alone; a language model cannot read it")
        if task.vocab_size > config.vocab_size:
            raise ConfigError(
                f"{where}: {task.label} has vocab_size={task.vocab_size}, the model {config.vocab_size}; use at most "
                "that"
            )
        check_length(config, task.length + 1, "run", f"{where}: {task.label} and BOS")
    return [Probe(one.task, one.task.sample(one.examples, seed)) for one in slices]


def measure_probes(
    model: "HybridLM",
    probes: Sequence[Probe],
    *,
    front: Sequence[int],
    batch_tokens: int = 8192,
    checkpoint: str = "",
) -> TokenProbes:
    """Accuracy on the examples of each probe, which `draw_probes` has checked; the model stays as it was.

    front: tokens before each example, such as BOS.
    """
    with inference(model):
        return TokenProbes([_measure(model, one, front, batch_tokens) for one in probes], checkpoint)


@dataclass(frozen=True)
class ProbesMeasurement:
    """The recipe's `eval.probes` as a measurement."""

    name: ClassVar[str] = "token_probes"

    recipe: "Recipe"
    tokenizer: "Tokenizer"
    batch_tokens: int

    @cached_property
    def probes(self) -> list[Probe]:
        return draw_probes(self.recipe.eval.probes, self.recipe.model, self.recipe.seed)

    def prepare(self) -> None:
        """Draw the examples, of tasks that models of the recipe's kind can read."""
        _ = self.probes

    def rehearse(self, model: "HybridLM") -> None:
        """Nothing is left that could fail."""

    def run(self, model: "HybridLM", checkpoint: str) -> TokenProbes:
        return measure_probes(
            model, self.probes, front=self.tokenizer.front, batch_tokens=self.batch_tokens, checkpoint=checkpoint
        )


def _measure(model: "HybridLM", probe: Probe, front: Sequence[int], batch_tokens: int) -> Probed:
    from .task import Examples

    task, examples = probe
    rows = max(1, batch_tokens // (task.length + len(front)))
    parts = [
        task.scores(_outputs(model, Examples(*batch), task.vocab_size, front), Examples(*batch))
        for batch in zip(examples.inputs.split(rows), examples.labels.split(rows), strict=True)
    ]
    accuracy, exact = (torch.cat([part[name].double() for part in parts]) for name in ("accuracy", "exact"))
    n = len(accuracy)
    stderr = float(accuracy.std()) / math.sqrt(n) if n > 1 else None
    return Probed(task.label, task.kind, float(accuracy.mean()), float(exact.mean()), stderr, n)


def _outputs(model: "HybridLM", examples: "Examples", vocab_size: int, front: Sequence[int]) -> torch.Tensor:
    """Logits of the task's own tokens [labelled positions, vocab_size], on the CPU."""
    first = model.config.vocab_size - vocab_size
    before = torch.tensor(front, dtype=torch.long).expand(len(examples.inputs), -1)
    ids = torch.cat([before, examples.inputs + first], dim=1).to(model.device)
    hidden = model(ids, logits=False).hidden[:, len(front) :]
    return model.head(hidden[examples.labelled.to(model.device)])[:, first:].float().cpu()
