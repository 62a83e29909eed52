"""Tasks small enough to train on within a test."""

from typing import ClassVar

import numpy as np
import torch

from hybridlm.eval.synthetic import TASKS
from hybridlm.eval.synthetic.task import Examples, Task
from hybridlm.lm.model.loss import IGNORE

OPTIM = {"epochs": 4, "batch": 16, "lr": 0.03, "eval_every": 4, "probe": 8}
MODEL = {"d_model": 16, "n_layers": 1, "pattern": ["gated_conv"], "ffn": None}


class Successor(Task):
    """Every third token asks for the id after it."""

    kind: ClassVar[str] = "toy_successor"
    vocab_size: int = 12
    length: int = 9
    n_pairs: int = 3

    def sample(self, n: int, seed: int) -> Examples:
        inputs = np.random.Generator(np.random.Philox(seed)).integers(0, self.vocab_size, (n, self.length))
        labels = np.where(np.arange(self.length) % 3 == 2, (inputs + 1) % self.vocab_size, IGNORE)
        return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))


class Total(Task):
    """The sum of a vector of three numbers, due at every position."""

    kind: ClassVar[str] = "toy_total"
    input_dim: ClassVar[int | None] = 3
    vocab_size: int = 0
    length: int = 5

    def sample(self, n: int, seed: int) -> Examples:
        drawn = np.random.Generator(np.random.Philox(seed)).random((n, self.length, 3)).astype(np.float32)
        return Examples(torch.from_numpy(drawn), torch.from_numpy(drawn.sum(2)))

    def scores(self, outputs: torch.Tensor, examples: Examples) -> dict[str, torch.Tensor]:
        errors = torch.zeros_like(examples.labels)
        errors[examples.labelled] = (outputs - examples.labels[examples.labelled]) ** 2
        return {"mse": errors.mean(1)}

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ((outputs - targets) ** 2).mean()


class Unlearnable(Successor):
    """Labels that are not in the vocabulary's logits: training on it fails."""

    kind: ClassVar[str] = "toy_unlearnable"

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.sum() * float("nan")


for task in (Successor, Total, Unlearnable):
    TASKS.setdefault(task.kind, task)


def recipe(task: str = "toy_successor", **changes) -> dict:
    """A recipe's tree; keyword arguments replace its sections, those of `optim` and `model` key by key."""
    tree = {
        "name": "toy",
        "train": [{"task": task, "examples": 64}, {"task": task, "length": 6, "examples": 40}],
        "test": [{"task": task, "examples": 24}, {"task": task, "length": 15, "examples": 24}],
        "model": {**MODEL, **changes.pop("model", {})},
        "optim": {**OPTIM, **changes.pop("optim", {})},
    }
    return {**tree, **changes}
