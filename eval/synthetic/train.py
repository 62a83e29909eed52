"""One run on synthetic tasks: one model, one process, a plain loop.

Logits exist only where an answer is due: at V = 8192, L = 256 and 256 examples a step, all of them would be 2 GB.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...lm.model import HybridLM
from ...lm.parts.context import Context
from ...lm.parts.errors import UserError
from ...lm.recipe.model import BaseModelConfig
from ...lm.recipe.train import OptimConfig, ScheduleConfig
from ...lm.train.optim import build_optimizer
from ...lm.train.schedule import learning_rate
from . import TASKS
from .circuits import reuse_between
from .recipe import Slice, SyntheticRecipe, TrainerConfig
from .task import Examples, Task

SOLVED = 0.99
"""Accuracy on the probe at which `steps_to_99` is read."""


class TrainingError(UserError, RuntimeError):
    """A run whose loss is no number any more."""


class SliceData(NamedTuple):
    """A slice's task and its examples, integers held in 2 bytes where the vocabulary allows it."""

    task: Task
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: Tensor) -> Examples:
        """The examples at `index` as the task made them."""
        return Examples(*(x[index] if x.is_floating_point() else x[index].long() for x in (self.inputs, self.labels)))

    def first(self, n: int) -> "SliceData":
        return SliceData(self.task, self.inputs[:n], self.labels[:n])


class TaskModel(HybridLM):
    """A HybridLM that reads token ids or, given `input_dim`, vectors, and answers only where answers are due.

    Vectors pass a linear map instead of the embedding, and the head gives one number. A task may bring a `readout` of
    its own, which replaces the head.
    """

    def __init__(self, config: BaseModelConfig, input_dim: int | None = None, readout: nn.Module | None = None):
        super().__init__(config)
        self.in_proj = None if input_dim is None else nn.Linear(input_dim, config.d_model)
        self.value_head = None if input_dim is None else nn.Linear(config.d_model, 1)
        self.readout = readout

    def answers(self, inputs: Tensor, where: Tensor) -> Tensor:
        """Logits [n_due, V], or values [n_due], at the positions `where` [n, L], row by row."""
        hidden = self(inputs, logits=False).hidden
        if self.readout is not None:
            return self.readout(hidden)[where]
        return self.head(hidden[where])

    def head(self, hidden: Tensor) -> Tensor:
        return super().head(hidden) if self.value_head is None else self.value_head(hidden).squeeze(-1)

    def _embed(self, input_ids: Tensor, sequences: Context) -> Tensor:
        return super()._embed(input_ids, sequences) if self.in_proj is None else self.in_proj(input_ids)


def build(recipe: SyntheticRecipe) -> TaskModel:
    """The recipe's model with weights drawn from its seed."""
    torch.manual_seed(recipe.seed)
    config, task = recipe.model_config_for_tasks(), recipe.train[0].task
    return TaskModel(config, task.input_dim, task.readout(config.d_model))


def load_slices(recipe: SyntheticRecipe, split: str) -> list[SliceData]:
    """The examples of every slice of `split`, drawn once per process."""
    slices: list[Slice] = getattr(recipe, split)
    return [
        _drawn(s.task.kind, json.dumps(s.task.model_dump()), s.examples, recipe.slice_seed(split, i))
        for i, s in enumerate(slices)
    ]


@lru_cache(maxsize=32)
def _drawn(kind: str, options: str, n: int, seed: int) -> SliceData:
    task = TASKS[kind].parse(json.loads(options))
    small = torch.int16 if task.vocab_size <= 2**15 else torch.int32
    return SliceData(task, *(x if x.is_floating_point() else x.to(small) for x in task.sample(n, seed)))


def batches(lengths: list[int], optim: TrainerConfig, generator: torch.Generator) -> list[tuple[int, Tensor]]:
    """One epoch as (slice, rows): in the order written as published, else drawn anew; see `TrainerConfig`."""
    sizes = optim.batch if isinstance(optim.batch, list) else [optim.batch] * len(lengths)
    published = optim.schedule == "as_published"
    found = []
    for i, (n, size) in enumerate(zip(lengths, sizes, strict=True)):
        rows = torch.arange(n) if published else torch.randperm(n, generator=generator)
        found += [(i, piece) for piece in rows.split(size)]
    if published:
        return found
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


def rate(optim: TrainerConfig, step: int, per_epoch: int) -> float:
    """The learning rate of update `step`, counted from 0, at `per_epoch` updates an epoch.

    as published: lr (1 + cos(pi e / E)) / 2 in epoch e = 0 .. E - 1. corrected: linear warm-up over the first tenth,
    then a cosine that is 0 after the last update.
    """
    if optim.schedule == "as_published":
        return optim.lr * (1 + math.cos(math.pi * (step // per_epoch) / optim.epochs)) / 2
    cosine = ScheduleConfig(kind="cosine", warmup=0.1, final=0)
    return learning_rate(step, optim.epochs * per_epoch, OptimConfig(lr=optim.lr, schedule=cosine))


def optimizer(model: nn.Module, optim: TrainerConfig) -> torch.optim.AdamW:
    """AdamW, with decay on every parameter as published, else on matrices only."""
    if optim.schedule == "as_published":
        return torch.optim.AdamW(
            model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )
    return build_optimizer(model, OptimConfig(lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay))


def train(recipe: SyntheticRecipe) -> dict[str, Any]:
    """Train and test one model; the recipe's grid is not looked at.

    Returns what a line of results.jsonl holds besides the run's name: parameters, state_bytes (float32, after the
    longest test example), steps, steps_to_99 (first look at the probe that saw more than 0.99, None without), seconds,
    accuracy and exact match, means over the slices, both per slice, `reuse` of layers if the slices are of two circuit
    tasks, the probe's curve and the layers. The same recipe gives the same numbers bit for bit. Raises TrainingError
    when the loss is not finite.
    """
    started = time.perf_counter()
    run = _Run(recipe)
    run.fit()
    slices = run.test()
    lengths = [part.inputs.shape[1] for part in run.held_out]
    return {
        "layers": dict(Counter(spec.mixer for spec in recipe.model.layer_specs())),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "state_bytes": run.model.state_bytes(max(lengths)),
        "steps": run.step,
        "steps_to_99": next((step for step, accuracy in run.curve if accuracy > SOLVED), None),
        "seconds": round(time.perf_counter() - started, 2),
        **{key: mean(slices, key) for key in ("accuracy", "exact", "mse") if mean(slices, key) is not None},
        "slices": slices,
        **reuse_between(run.model, [part.task for part in run.held_out]),
        "probe": [(step, round(accuracy, 4)) for step, accuracy in run.curve],
    }


class _Run:
    """A model, its optimizer, its data, and how far it has got."""

    def __init__(self, recipe: SyntheticRecipe):
        self.optim = recipe.optim
        self.model = build(recipe)
        self.updates = optimizer(self.model, recipe.optim)
        self.order = torch.Generator().manual_seed(recipe.seed)
        self.data, self.held_out = load_slices(recipe, "train"), load_slices(recipe, "test")
        self.probe = [part.first(recipe.optim.probe) for part in self.held_out]
        self.step = 0
        self.curve: list[tuple[int, float]] = []

    def fit(self) -> None:
        """All epochs, or as many as it takes."""
        for _epoch in range(self.optim.epochs):
            epoch = batches([len(part) for part in self.data], self.optim, self.order)
            for i, rows in epoch:
                self.update(self.data[i].task, self.data[i].rows(rows), len(epoch))
                promising = self.step % self.optim.eval_every == 0 and self.look()
                if promising and self.optim.schedule == "corrected" and self.solved():
                    return
            if self.optim.schedule == "as_published" and self.solved():
                return

    def update(self, task: Task, examples: Examples, per_epoch: int) -> None:
        """One step on one batch."""
        self.model.train()
        for group in self.updates.param_groups:
            group["lr"] = rate(self.optim, self.step, per_epoch)
        where = examples.labelled
        loss = task.loss(self.model.answers(examples.inputs, where), examples.labels[where])
        if not math.isfinite(value := loss.item()):
            raise TrainingError(f"loss is {value} at step {self.step + 1}; lower optim.lr={self.optim.lr:g}")
        self.updates.zero_grad(set_to_none=True)
        loss.backward()
        if self.optim.schedule == "corrected" and self.optim.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
        self.updates.step()
        self.step += 1

    def look(self) -> bool:
        """Note the probe's accuracy, and say whether it is worth testing in full."""
        accuracy = mean(evaluate(self.model, self.probe, self.optim.test_batch), "accuracy")
        if accuracy is not None:
            self.curve.append((self.step, accuracy))
        return accuracy is not None and accuracy > self.optim.stop_at

    def test(self) -> list[dict[str, Any]]:
        return evaluate(self.model, self.held_out, self.optim.test_batch)

    def solved(self) -> bool:
        accuracy = mean(self.test(), "accuracy")
        return accuracy is not None and accuracy > self.optim.stop_at


@torch.no_grad()
def evaluate(model: TaskModel, parts: list[SliceData], batch: int) -> list[dict[str, Any]]:
    """Every slice's metrics, each a mean over its examples, and the standard error of the first of them."""
    model.eval()
    return [{**_described(part), **_measured(model, part, batch)} for part in parts]


def _described(part: SliceData) -> dict[str, Any]:
    task = part.task
    return {"label": task.label, "task": task.kind, "length": task.length, "n_pairs": getattr(task, "n_pairs", None)}


def _measured(model: TaskModel, part: SliceData, batch: int) -> dict[str, Any]:
    found: dict[str, list[Tensor]] = {}
    for examples in _pieces(part, batch):
        scores = part.task.scores(model.answers(examples.inputs, examples.labelled), examples)
        for name, values in scores.items():
            found.setdefault(name, []).append(values.double())
    metrics = {name: torch.cat(values) for name, values in found.items()}
    main, n = next(iter(metrics.values())), len(part)
    error = float(main.std() / math.sqrt(n)) if n > 1 else None
    return {**{name: float(values.mean()) for name, values in metrics.items()}, "stderr": error, "n": n}


def _pieces(part: SliceData, batch: int) -> Iterator[Examples]:
    for rows in torch.arange(len(part)).split(batch):
        yield part.rows(rows)


def mean(slices: list[dict[str, Any]], key: str) -> float | None:
    """The unweighted mean over the slices, None when they are not all measured by it."""
    values = [s[key] for s in slices if key in s]
    return sum(values) / len(values) if len(values) == len(slices) else None
