"""Two tasks that one circuit may serve, and whether a model uses the same layers for both (arXiv 2310.08744).

    indirect object      . A . B . . B . ->  A                 the name that was said once
    coloured objects     c1 o1 , c2 o2 , c3 o3 ? o2 : c2 .     one example with its answer, then a question of the kind

Token-level forms of the paper's English prompts. The two share no id, so that one model can be trained on both.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...lm.mixers import Mixed
from ...lm.model import HybridLM
from ...lm.model.loss import IGNORE
from ...lm.parts.ranges import LONGEST, WIDEST
from ..forward.scoring import inference
from .drawing import distinct, generator
from .task import Anchor, Examples, Task

N_OBJECTS, N_COLOURS = 17, 8
COMMA, QUESTION, COLON, STOP, ARROW, FIRST_NAME = range(N_OBJECTS + N_COLOURS, N_OBJECTS + N_COLOURS + 6)
N_LAST = 3  # fillers before the arrow


class CircuitTask(Task):
    """One answer per example, at its last token, out of a few candidates that the example shows."""

    def candidates(self, examples: Examples) -> Tensor:
        """[n, number of candidates]: the answer, then what it could be confused with."""
        raise NotImplementedError

    def scores(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """Also `among`, accuracy among the candidates, and `logit_difference` of the answer and the others' mean."""
        logits = outputs.float().gather(1, self.candidates(examples))
        return {
            **super().scores(outputs, examples),
            "among": (logits.argmax(1) == 0).float(),
            "logit_difference": logits[:, 0] - logits[:, 1:].mean(1),
        }


class IndirectObject(CircuitTask):
    """Two names among random fillers, then one of them again: the answer is the other one.

    Every second example says first the name that is repeated (B A B -> A), the rest the other (A B B -> A). The last
    three tokens before the arrow are fillers, so that no count of trigrams knows a name.
    """

    kind: ClassVar[str] = "indirect_object"
    vocab_size: int = Field(default=128, gt=0, le=LONGEST)
    length: int = Field(default=24, gt=3 + N_LAST, le=LONGEST)
    n_names: int = Field(default=20, gt=1, le=WIDEST)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needed = FIRST_NAME + self.n_names + 1
        if self.vocab_size < needed:
            raise ValueError(
                f"{self.kind}.vocab_size: {self.vocab_size} leaves no filler beside n_names={self.n_names} and the "
                f"{FIRST_NAME} ids of marks and coloured objects; use at least {needed}"
            )
        return self

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        names = FIRST_NAME + distinct(rng, self.n_names, 2, (n,))
        repeated = rng.permutation(np.arange(n) % 2)  # which of the two names, in the order in which they are said
        again = np.take_along_axis(names, repeated[:, None], 1)
        places = np.sort(distinct(rng, self.length - 1 - N_LAST, 3, (n,)), 1)
        inputs = rng.integers(FIRST_NAME + self.n_names, self.vocab_size, (n, self.length))
        np.put_along_axis(inputs, places, np.concatenate((names, again), 1), 1)
        inputs[:, -1] = ARROW
        answers = np.take_along_axis(names, 1 - repeated[:, None], 1)
        return _ask_last(inputs, answers[:, 0])

    def candidates(self, examples: Examples) -> Tensor:
        inputs, answers = examples.inputs, examples.labels[:, -1]
        named = (inputs >= FIRST_NAME) & (inputs < FIRST_NAME + self.n_names)
        said = (inputs * named).sum(1)  # the answer once, the other name twice
        return torch.stack((answers, (said - answers) // 2), 1)

    def anchors(self) -> list[Anchor]:
        """Guessing between the two names."""
        return [Anchor("chance", "among", 1 / 2, "closed form")]


class ColouredObjects(CircuitTask):
    """Three coloured objects and a question for the colour of one, after an example of the same form with its answer.

    The colours of the example do not include the answer, which therefore cannot be copied from there.
    """

    kind: ClassVar[str] = "coloured_objects"
    block: ClassVar[int] = 11
    """Tokens of `c1 o1 , c2 o2 , c3 o3 ? o :`."""
    vocab_size: int = Field(default=STOP + 1, ge=STOP + 1, le=LONGEST)
    length: int = Field(default=2 * block + 2, ge=2 * block + 2, le=2 * block + 2)

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        colours = distinct(rng, N_COLOURS, N_COLOURS, (n,))
        shown, answers = colours[:, :3], colours[:, 3]
        others = np.delete(colours, 3, axis=1)
        asked = rng.integers(0, 3, (n, 1))
        question = np.take_along_axis(others, distinct(rng, N_COLOURS - 1, 3, (n,)), 1)
        np.put_along_axis(question, asked, answers[:, None], 1)
        shot, shot_answers = self._block(rng, shown, rng.integers(0, 3, (n, 1)))
        last, _ = self._block(rng, question, asked)
        stop = np.full((n, 1), STOP)
        return _ask_last(np.concatenate((shot, shot_answers, stop, last), 1), N_OBJECTS + answers)

    def _block(self, rng: np.random.Generator, colours: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """colours [n, 3], asked [n, 1] -> tokens [n, block] and the answer [n, 1]."""
        objects = distinct(rng, N_OBJECTS, 3, (len(colours),))
        tokens = np.empty((len(colours), self.block), dtype=np.int64)
        tokens[:, 0:8:3], tokens[:, 1:8:3] = N_OBJECTS + colours, objects
        tokens[:, [2, 5]], tokens[:, 8], tokens[:, 10] = COMMA, QUESTION, COLON
        tokens[:, 9:10] = np.take_along_axis(objects, asked, 1)
        return tokens, N_OBJECTS + np.take_along_axis(colours, asked, 1)

    def candidates(self, examples: Examples) -> Tensor:
        answers = examples.labels[:, -1:]
        colours = examples.inputs[:, -self.block :][:, 0:8:3]
        return torch.cat((answers, colours[colours != answers].view(-1, 2)), 1)

    def anchors(self) -> list[Anchor]:
        """Guessing among the three colours, and the paper's model on English prompts."""
        return [
            Anchor("chance", "among", 1 / 3, "closed form"),
            Anchor("GPT-2 medium", "accuracy", 0.496, "arXiv 2310.08744, English prompts"),
        ]


class Reuse(NamedTuple):
    """How alike two tasks are in the layers that they need.

    effects: [2, n_layers], by how much the mean logit difference falls on each task when a layer's mixer is ablated.
    spearman: rank correlation of the two rows. jaccard: overlap of the two sets of the strongest 10 % of the layers.
    """

    effects: Tensor
    spearman: float
    jaccard: float


def reuse_score(model: HybridLM, tasks: tuple[CircuitTask, CircuitTask], *, n: int = 256, seed: int = 0) -> Reuse:
    """Ablate one mixer at a time on n examples of both tasks: its output becomes its mean over them, at each position.

    Raises ValueError on a model whose vocabulary is smaller than a task's.
    """
    from scipy.stats import spearmanr

    effects = torch.stack([_effects(model, task, task.sample(n, seed)) for task in tasks])
    spearman = spearmanr(effects[0].numpy(), effects[1].numpy()).statistic  # pyright: ignore[reportAttributeAccessIssue]
    return Reuse(effects, float(spearman), _jaccard(*effects))


def reuse_between(model: HybridLM, tasks: Sequence[Task]) -> dict[str, Any]:
    """`reuse` for the results of a model that was trained on two circuit tasks; nothing for one of other tasks."""
    circuits = {type(task): task for task in tasks if isinstance(task, CircuitTask)}
    if len(circuits) != 2:
        return {}
    first, second = circuits.values()
    score = reuse_score(model, (first, second))
    return {
        "reuse": {
            **score._asdict(),
            "effects": dict(zip((first.kind, second.kind), score.effects.tolist(), strict=True)),
        }
    }


def _effects(model: HybridLM, task: CircuitTask, examples: Examples) -> Tensor:
    """[n_layers], on one task."""
    if model.config.vocab_size < task.vocab_size:
        raise ValueError(
            f"{task.kind}.vocab_size: {task.vocab_size} exceeds the model's {model.config.vocab_size}; use a model "
            "trained on this task"
        )
    inputs = examples.inputs.to(model.device)
    means: list[Tensor] = []

    def difference() -> float:
        hidden = model(inputs, logits=False).hidden[:, -1]
        return task.scores(model.head(hidden).cpu(), examples)["logit_difference"].mean().item()

    def remember(mixed: Mixed) -> Mixed:
        means.append(mixed.y.mean(0, keepdim=True))
        return mixed

    with inference(model):
        with replaced(model, range(model.config.n_layers), remember):
            whole = difference()
        effects = []
        for i, mean in enumerate(means):
            with replaced(model, [i], partial(_with_output, mean)):
                effects.append(whole - difference())
    return torch.tensor(effects)


@contextmanager
def replaced(model: HybridLM, layers: range | list[int], replace: Callable[[Mixed], Mixed]) -> Iterator[None]:
    """Inside, the mixers of these layers give `replace` of what they would."""

    def hook(_mixer: nn.Module, _args: tuple, mixed: Any) -> Mixed:
        return replace(mixed)

    mixers = list(model.mixers())
    hooks = [mixers[i].register_forward_hook(hook) for i in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _with_output(y: Tensor, mixed: Mixed) -> Mixed:
    return mixed._replace(y=y.expand_as(mixed.y))


def _jaccard(first: Tensor, second: Tensor) -> float:
    k = math.ceil(len(first) / 10)
    a, b = (set(row.abs().topk(k).indices.tolist()) for row in (first, second))
    return len(a & b) / len(a | b)


def _ask_last(inputs: np.ndarray, answers: np.ndarray) -> Examples:
    labels = np.full_like(inputs, IGNORE)
    labels[:, -1] = answers
    return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))
