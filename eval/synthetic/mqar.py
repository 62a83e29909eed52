"""Associative recall with many queries: MQAR of Zoology (Arora et al. 2023, arXiv 2312.04927) and its variants.

    k1 v1 k2 v2 ... kK vK | . . k2 . k5 . . . k1 ...        each key of the second part asks for its value

The label stands on the query itself, and the answer is never shown after it, so no later token gives it away. Keys are
K different ids of 1 ... V/2 - 1, values K different ids of V/2 ... V - 1, drawn anew for every example.

Studied: Zoology's generators at github.com/HazyResearch/zoology, d88d6f5 (January 2026).
"""

from collections.abc import Iterable
from itertools import count
from math import isqrt
from typing import Any, ClassVar, Literal, NamedTuple, Self

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


class Pool(NamedTuple):
    """The ids first ... end - 1, of which an example takes `needed` different ones."""

    what: str
    first: int
    end: int
    needed: int

    @property
    def size(self) -> int:
        return self.end - self.first


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

    def pools(self, vocab_size: int) -> list[Pool]:
        """Ids from which an example draws, the values last; 0 is in none. Here: keys below, values above the middle."""
        half = vocab_size // 2
        return [Pool("keys", 1, half, self.n_pairs), Pool("values", half, vocab_size, self.n_pairs)]

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
        if not self._has_room(self.vocab_size):
            pools = self.pools(self.vocab_size)
            has, needs = _listed(f"{p.size} {p.what}" for p in pools), _listed(str(p.needed) for p in pools)
            # a third may lose an id where the vocabulary gains one: three sizes that fit, so all above do
            least = next(size for size in count(self.vocab_size) if all(map(self._has_room, range(size, size + 3))))
            raise ValueError(
                f"{self.kind}.vocab_size: {self.vocab_size} has {has}, n_pairs={self.n_pairs} needs {needs}; "
                f"use at least {least}"
            )
        return self

    def _has_room(self, vocab_size: int) -> bool:
        return all(pool.size >= pool.needed for pool in self.pools(vocab_size))

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        drawn = [p.first + distinct(rng, p.size, p.needed, (n,)) for p in self.pools(self.vocab_size)]
        context, queries, answers = self.arrange(rng, *drawn)
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

    def arrange(self, rng: np.random.Generator, *drawn: np.ndarray) -> tuple[np.ndarray, ...]:
        """What was drawn from each pool, [n, needed] -> the context [n, context_length], the queries
        [n, n_pairs, tokens of a query] and their answers [n, n_pairs]."""
        raise NotImplementedError

    def anchors(self) -> list[Anchor]:
        """Accuracy of guessing among all values."""
        return [Anchor("chance", "accuracy", 1 / self.pools(self.vocab_size)[-1].size, "closed form")]


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

    def arrange(self, rng: np.random.Generator, *drawn: np.ndarray) -> tuple[np.ndarray, ...]:
        keys, values = drawn
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

    new_values: `distinct`: all values of an example differ, so no new one can equal an old one of any key. `zoology`:
    as Zoology draws them, each by itself from all values but one; of update j that is the first value of pair j, which
    need not be the pair that update j is for. So a value may come twice, and an update may repeat what it replaces: of
    K pairs and V ids, (1 - 1/K) / (V/2 - 1) of the updates do, 1.8 % at 8 pairs and 100 ids.
    """

    kind: ClassVar[str] = "mqar_forgetting"
    length: int = Field(default=64, gt=0, le=LONGEST)
    n_updates: int = Field(default=4, gt=0, le=WIDEST)
    new_values: Literal["distinct", "zoology"] = "distinct"

    @model_validator(mode="after")
    def _some_keys(self) -> Self:
        if self.n_updates > self.n_pairs:
            raise ValueError(f"{self.kind}.n_updates: {self.n_updates} exceeds n_pairs={self.n_pairs}; lower it")
        return self

    @property
    def label(self) -> str:
        drawn = "" if self.new_values == "distinct" else f" {self.new_values}"
        return f"{super().label} U{self.n_updates}{drawn}"

    @property
    def context_length(self) -> int:
        return 2 * (self.n_pairs + self.n_updates)

    def pools(self, vocab_size: int) -> list[Pool]:
        keys, values = super().pools(vocab_size)
        apart = self.n_pairs + self.n_updates if self.new_values == "distinct" else max(self.n_pairs, 2)
        return [keys, values._replace(needed=apart)]

    def identity(self) -> tuple[str, dict[str, Any]]:
        kind, options = super().identity()
        if self.new_values == "distinct":
            del options["new_values"]  # results from before there was a choice
        return kind, options

    def arrange(self, rng: np.random.Generator, *drawn: np.ndarray) -> tuple[np.ndarray, ...]:
        keys, values = drawn
        old, new = np.split(values, [self.n_pairs], axis=1)
        if self.new_values == "zoology":
            pool = self.pools(self.vocab_size)[-1]
            new = rng.integers(pool.first, pool.end - 1, (len(keys), self.n_updates))
            new += new >= old[:, : self.n_updates]
        updated = distinct(rng, self.n_pairs, self.n_updates, (len(keys),))
        answers = old.copy()
        np.put_along_axis(answers, updated, new, 1)
        repeated = np.take_along_axis(keys, updated, 1)
        context = np.concatenate((_interleave(keys, old), _interleave(repeated, new)), 1)
        return context, keys[..., None], answers

    def scores(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """Also `updated`: accuracy on the keys that were shown again."""
        keys = examples.inputs[:, 2 * self.n_pairs : self.context_length : 2]  # [n, n_updates]
        again = (examples.inputs[..., None] == keys[:, None]).any(-1) & examples.labelled  # [n, L]
        of_them = examples._replace(labels=examples.labels.where(again, IGNORE))
        updated = super().scores(outputs[again[examples.labelled]], of_them)["accuracy"]
        return {**super().scores(outputs, examples), "updated": updated}


class CompositionalMQAR(PairRecall):
    """Triplets a b v in random order, for every a and b of two sets of sqrt(n_pairs) keys; a query is a b.

    Every a and every b stands in sqrt(n_pairs) triplets of different values: one of the two does not tell the answer.
    As in Zoology an a, a b and a value are ids of different thirds of the vocabulary: 1 ... V/3 - 1, V/3 ... 2 V/3 - 1
    and 2 V/3 ... V - 1.
    """

    kind: ClassVar[str] = "mqar_compositional"
    edition: ClassVar[int] = 2  # in the first both keys came from one half of the vocabulary
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

    def pools(self, vocab_size: int) -> list[Pool]:
        side, third = isqrt(self.n_pairs), vocab_size // 3
        return [
            Pool("first keys", 1, third, side),
            Pool("second keys", third, 2 * third, side),
            Pool("values", 2 * third, vocab_size, self.n_pairs),
        ]

    def arrange(self, rng: np.random.Generator, *drawn: np.ndarray) -> tuple[np.ndarray, ...]:
        firsts, seconds, values = drawn
        side = isqrt(self.n_pairs)
        cells = distinct(rng, self.n_pairs, self.n_pairs, (len(values),))
        first = np.take_along_axis(firsts, cells // side, 1)
        second = np.take_along_axis(seconds, cells % side, 1)
        return _interleave(first, second, values), np.stack((first, second), 2), values


def _listed(parts: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = parts
    return f"{', '.join(most)} and {last}"


def _interleave(*columns: np.ndarray) -> np.ndarray:
    """[n, P] each -> [n, P * number of columns]: the first of every column, then the second of every column, ..."""
    return np.stack(columns, 2).reshape(len(columns[0]), -1)
