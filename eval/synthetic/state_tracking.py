"""State tracking: the parity of bits, and word problems of finite groups.

    r_t = r_{t-1} g_t,   r_0 = identity;   the label at position t is r_t

Parity is the word problem of Z2. A linear recurrence with eigenvalues in [0, 1] cannot keep either beyond the lengths
it was trained on, however well it fits those (Grazzi et al. 2024, arXiv 2411.12537, thms. 1 and 2): a sign test of an
implementation. Word problems: Merrill et al. 2024, arXiv 2404.08819; of the groups here only A5 and S5 are unsolvable.
"""

from functools import cache
from itertools import permutations
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from ...lm.model.loss import IGNORE
from ...lm.parts.ranges import LONGEST, WIDEST
from .drawing import derive, generator
from .task import Anchor, Examples, Task

Group = Literal["Z2", "S3", "S4", "S5", "A5", "Z60", "A4xZ5"]
PAD = 2


class Parity(Task):
    """Strings of bits; the label is their sum modulo 2, due at the last bit or, `cumulative`, at every bit.

    A string's length is uniform in [min_length, length]; behind it stands padding (id 2), which no answer can see.
    """

    kind: ClassVar[str] = "parity"
    vocab_size: int = Field(default=3, ge=3, le=3)
    length: int = Field(default=40, gt=0, le=LONGEST)
    min_length: int = Field(default=3, gt=0, le=WIDEST)
    cumulative: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_length > self.length:
            raise ValueError(f"parity.min_length: {self.min_length} exceeds length={self.length}; lower it")
        return self

    @property
    def label(self) -> str:
        return f"parity{' cumulative' if self.cumulative else ''} L{self.min_length}-{self.length}"

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        bits = rng.integers(0, 2, (n, self.length))
        lengths = rng.integers(self.min_length, self.length + 1, (n, 1))
        place = np.arange(self.length)
        real = place < lengths
        asked = real if self.cumulative else place == lengths - 1
        labels = np.where(asked, bits.cumsum(1) % 2, IGNORE)
        return Examples(torch.from_numpy(np.where(real, bits, PAD)), torch.from_numpy(labels))

    def anchors(self) -> list[Anchor]:
        """Chance, and what the paper's linear recurrences do on lengths 40 to 256 after training on 3 to 40."""
        outcome = "arXiv 2411.12537: trained on lengths 3-40, tested on 40-256"
        return [
            Anchor("chance", "accuracy", 0.5, "closed form"),
            Anchor("eigenvalues in [-1, 1]", "accuracy", 1.0, outcome),
            Anchor("eigenvalues in [0, 1]", "accuracy", 0.5, outcome),
        ]


class GroupWords(Task):
    """Words of a finite group, each letter uniform over its elements; every position asks for the product so far.

    Elements are numbered with the identity at 0; see `multiplication_table`.
    """

    kind: ClassVar[str] = "group"
    vocab_size: int = Field(default=0, ge=0, le=LONGEST, description="the order of the group; leave it out")
    length: int = Field(default=128, gt=0, le=LONGEST)
    group: Group = "S3"

    @model_validator(mode="after")
    def _order(self) -> Self:
        return derive(self, vocab_size=len(multiplication_table(self.group)))

    @property
    def label(self) -> str:
        return f"{self.group} L{self.length}"

    def sample(self, n: int, seed: int) -> Examples:
        table = multiplication_table(self.group)
        letters = generator(self.kind, seed).integers(0, len(table), (n, self.length))
        products = np.empty_like(letters)
        state = np.zeros(n, dtype=np.int64)
        for t in range(self.length):
            state = products[:, t] = table[state, letters[:, t]]
        return Examples(torch.from_numpy(letters), torch.from_numpy(products))

    def anchors(self) -> list[Anchor]:
        """Chance; what the sign of a permutation alone is worth, which one reflection per token can carry; for S3,
        DeltaProduct's outcomes with one layer, documented as solved or not: 1 and chance here."""
        chance = 1 / self.vocab_size
        anchors = [Anchor("chance", "accuracy", chance, "closed form")]
        if self.group.startswith("S"):
            anchors.append(Anchor("sign alone", "accuracy", 2 * chance, "closed form"))
        if self.group == "S3":
            source = "arXiv 2502.10297, one layer, trained at 128, tested at 512"
            anchors += [
                Anchor("1 Householder, [-1, 1]", "accuracy", chance, source + ": fails"),
                Anchor("2 Householders, [-1, 1]", "accuracy", 1.0, source + ": solves"),
                Anchor("2 Householders, [0, 1]", "accuracy", chance, source + ": fails"),
            ]
        return anchors


@cache
def multiplication_table(group: Group) -> np.ndarray:
    """table[a, b] = the number of a b, [order, order] int64, element 0 the identity.

    Permutations are numbered in lexicographic order and applied from the left to the right: (a b)(x) = b(a(x)).
    Z_n: addition modulo n. A4xZ5: the element (a, z) has the number 5 a + z.
    """
    if group == "A4xZ5":
        a4, z5 = _permutations("A", 4), _cyclic(5)
        table = 5 * a4[:, None, :, None] + z5[None, :, None, :]  # [12, 5, 12, 5]
        return table.reshape(60, 60)
    kind, size = group[0], int(group[1:])
    return _cyclic(size) if kind == "Z" else _permutations(kind, size)


def _cyclic(n: int) -> np.ndarray:
    return np.add.outer(np.arange(n), np.arange(n)) % n


def _permutations(kind: str, n: int) -> np.ndarray:
    """The table of the symmetric (S) or alternating (A) group on n points."""
    elements = [p for p in permutations(range(n)) if kind == "S" or _is_even(p)]
    number = {p: i for i, p in enumerate(elements)}
    return np.array([[number[tuple(b[x] for x in a)] for b in elements] for a in elements])


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(p[i] > p[j] for j in range(len(p)) for i in range(j)) % 2 == 0
