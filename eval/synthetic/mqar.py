"""Associative recall with many queries: MQAR of Zoology (Arora et al. 2023, arXiv 2312.04927) and its variants.

    k1 v1 k2 v2 ... kK vK | . . k2 . k5 . . . k1 ...        each key of the second part asks for its value

The label stands on the query itself, and the answer is never shown after it, so no later token gives it away. Keys are
K different ids of 1 ... V/2 - 1, values K different ids of V/2 ... V - 1, drawn anew for every example.
"""

from math import isqrt
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...lm.model.loss import IGNORE
from ...lm.parts.ranges import LONGEST, WIDEST
from .anchors import FIG2, RECALL_BY_STATE, SLICES
from .drawing import distinct, generator
from .slots import draw_slots, slot_weights
from .task import Anchor, Examples, Task


class PairRecall(Task):
    """What the variants share: a context of pairs, then slots, `n_pairs` of which hold the queries.

    Slots are drawn without replacement, slot i with weight (i + 1)^(power_a - 1); the j-th one drawn asks for pair j.
    """

    slot: ClassVar[int] = 2
    """Tokens of a slot, and of a pair with its value."""
    vocab_size: int = Field(default=8192, gt=3, le=LONGEST)
    n_pairs: int = Field(default=8, gt=0, le=WIDEST)
    power_a: float = Field(default=0.01, gt=0, le=100, description="1: every slot is as likely")
    random_non_queries: bool = Field(default=True, description="random ids between the queries rather than 0")
    min_distance: int = Field(default=0, ge=0, le=WIDEST)
    """A query stands at least this many tokens after the value it asks for: nothing that sees only the last
    `min_distance` tokens, the query included, can answer better than by guessing. Layers with a window of w tokens see
    1 + n_layers (w - 1)."""

    @property
    def context_length(self) -> int:
        """Tokens before the slots, less what `min_distance` adds."""
        raise NotImplementedError

    @property
    def n_keys(self) -> int:
        """Different keys of one example."""
        return self.n_pairs

    @property
    def n_values(self) -> int:
        """Different values of one example."""
        return self.n_pairs

    @property
    def label(self) -> str:
        beyond = f" D{self.min_distance}" if self.min_distance else ""
        return f"{self.kind} L{self.length} K{self.n_pairs}{beyond}"

    @property
    def first_slot(self) -> int:
        """Position of slot 0: after the context and, for `min_distance`, a gap of an even number of tokens."""
        return self.context_length + self.min_distance // 2 * 2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needed = self.first_slot + self.slot * self.n_pairs
        if self.length < needed:
            raise ValueError(
                f"{self.kind}.length: {self.length} is too short for n_pairs={self.n_pairs}: the pairs take "
                f"{self.first_slot} tokens and their queries {self.slot * self.n_pairs}; use at least {needed}"
            )
        if self.length % 2:
            raise ValueError(f"{self.kind}.length: {self.length} is odd; use {self.length + 1}")
        half = self.vocab_size // 2
        if self.n_keys > half - 1 or self.n_values > self.vocab_size - half:
            raise ValueError(
                f"{self.kind}.vocab_size: {self.vocab_size} has {half - 1} keys and {self.vocab_size - half} values, "
                f"n_pairs={self.n_pairs} needs {self.n_keys} and {self.n_values}; use at least "
                f"{2 * max(self.n_keys + 1, self.n_values)}"
            )
        return self

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        keys = 1 + distinct(rng, self.vocab_size // 2 - 1, self.n_keys, (n,))
        values = self.vocab_size // 2 + distinct(rng, (self.vocab_size + 1) // 2, self.n_values, (n,))
        context, queries, answers = self.arrange(rng, keys, values)
        slots = draw_slots(
            rng, slot_weights((self.length - self.first_slot) // self.slot, self.power_a), n, self.n_pairs
        )
        inputs = np.zeros((n, self.length), dtype=np.int64)
        labels = np.full_like(inputs, IGNORE)
        inputs[:, : self.context_length] = context
        places = self.first_slot + self.slot * slots  # [n, n_pairs], of each query's first token
        width = queries.shape[2]
        for i in range(width):
            np.put_along_axis(inputs, places + i, queries[..., i], 1)
        np.put_along_axis(labels, places + width - 1, answers, 1)
        if self.random_non_queries:
            inputs = np.where(inputs == 0, rng.integers(0, self.vocab_size, inputs.shape), inputs)
        return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))

    def arrange(self, rng: np.random.Generator, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        """keys [n, n_keys] and values [n, n_values] -> the context [n, context_length], the queries
        [n, n_pairs, tokens of a query] and their answers [n, n_pairs]."""
        raise NotImplementedError

    def anchors(self) -> list[Anchor]:
        """Accuracy of guessing among all values."""
        return [Anchor("chance", "accuracy", 1 / ((self.vocab_size + 1) // 2), "closed form")]


class MQAR(PairRecall):
    """Zoology's generator, its defaults included; `num_passes` shows all the pairs that many times, in the same order.

    Unlike Zoology's, whose fillers come from another, global generator, examples depend on the options and seed alone.
    """

    kind: ClassVar[str] = "mqar"
    length: int = Field(default=64, gt=0, le=LONGEST)
    num_passes: int = Field(default=1, gt=0, le=WIDEST)

    @property
    def context_length(self) -> int:
        return 2 * self.n_pairs * self.num_passes

    def arrange(self, rng: np.random.Generator, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        return np.tile(_interleave(keys, values), (1, self.num_passes)), keys[..., None], values

    def anchors(self) -> list[Anchor]:
        """Chance, what Zoology's Fig. 2 has for this slice, and with the last of the seven slices their means."""
        figures = [
            Anchor(f"{mixer} d{width}", "accuracy", value, "arXiv 2312.04927 Fig. 2, best of 4 learning rates")
            for mixer, points in FIG2.get((self.length, self.n_pairs), {}).items()
            for width, value in points.items()
        ]
        if (self.length, self.n_pairs) == SLICES[-1]:
            source = "Zoology's README, recall-memory plot, best learning rate"
            figures += [
                Anchor(f"{mixer}, {size:,.0f} bytes of state", "accuracy, mean of 7 slices", value, source)
                for mixer, points in RECALL_BY_STATE.items()
                for size, value in points.items()
            ]
        return [*super().anchors(), *figures]


class ForgettingMQAR(PairRecall):
    """Of the pairs, `n_updates` are then shown again with another value, which is the one to answer.

    All values of an example differ, so no new one can equal an old one of any key.
    """

    kind: ClassVar[str] = "mqar_forgetting"
    length: int = Field(default=64, gt=0, le=LONGEST)
    n_updates: int = Field(default=4, gt=0, le=WIDEST)

    @model_validator(mode="after")
    def _some_keys(self) -> Self:
        if self.n_updates > self.n_pairs:
            raise ValueError(f"{self.kind}.n_updates: {self.n_updates} exceeds n_pairs={self.n_pairs}; lower it")
        return self

    @property
    def label(self) -> str:
        return f"{super().label} U{self.n_updates}"

    @property
    def context_length(self) -> int:
        return 2 * (self.n_pairs + self.n_updates)

    @property
    def n_values(self) -> int:
        return self.n_pairs + self.n_updates

    def arrange(self, rng: np.random.Generator, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        old, new = np.split(values, [self.n_pairs], axis=1)
        updated = distinct(rng, self.n_pairs, self.n_updates, (len(keys),))
        answers = old.copy()
        np.put_along_axis(answers, updated, new, 1)
        repeated = np.take_along_axis(keys, updated, 1)
        context = np.concatenate((_interleave(keys, old), _interleave(repeated, new)), 1)
        return context, keys[..., None], answers

    def scores(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """Also `updated`: accuracy on the keys whose value changed."""
        new = examples.inputs[:, 2 * self.n_pairs + 1 : self.context_length : 2]  # [n, n_updates]
        changed = (examples.labels[..., None] == new[:, None]).any(-1)  # [n, L]
        of_changed = examples._replace(labels=examples.labels.where(changed, IGNORE))
        updated = super().scores(outputs[changed[examples.labelled]], of_changed)["accuracy"]
        return {**super().scores(outputs, examples), "updated": updated}


class CompositionalMQAR(PairRecall):
    """Triplets a b v in random order, for every a and b of two sets of sqrt(n_pairs) keys; a query is a b.

    Every a and every b stands in sqrt(n_pairs) triplets of different values: one of the two does not tell the answer.
    """

    kind: ClassVar[str] = "mqar_compositional"
    slot: ClassVar[int] = 3
    length: int = Field(default=64, gt=0, le=LONGEST)
    n_pairs: int = Field(default=9, gt=0, le=WIDEST, description="a square")

    @model_validator(mode="after")
    def _square(self) -> Self:
        side = isqrt(self.n_pairs)
        if side**2 != self.n_pairs:
            raise ValueError(f"{self.kind}.n_pairs: {self.n_pairs} is no square; use {side**2} or {(side + 1) ** 2}")
        return self

    @property
    def context_length(self) -> int:
        return 3 * self.n_pairs

    @property
    def n_keys(self) -> int:
        return 2 * isqrt(self.n_pairs)

    def arrange(self, rng: np.random.Generator, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        side = isqrt(self.n_pairs)
        cells = distinct(rng, self.n_pairs, self.n_pairs, (len(keys),))
        first = np.take_along_axis(keys, cells // side, 1)
        second = np.take_along_axis(keys, side + cells % side, 1)
        return _interleave(first, second, values), np.stack((first, second), 2), values


def _interleave(*columns: np.ndarray) -> np.ndarray:
    """[n, P] each -> [n, P * number of columns]: the first of every column, then the second of every column, ..."""
    return np.stack(columns, 2).reshape(len(columns[0]), -1)
