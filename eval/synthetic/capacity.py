"""Associative capacity: how many pairs of key and value an operator holds at once, with nothing trained.

    P random unit keys of d_k numbers, each with one of `n_labels` one-hot values: write all, then read every key once

An answer is the largest of the numbers read. Short convolutions, norms and projections are left out: this is the
operator alone (after arXiv 2508.08289, which has linear attention hold O(sqrt(d_k)) pairs without any error, and
O(d_k) on average). Random keys are not orthogonal: the delta rule, exact on orthogonal ones, then forgets old pairs.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Group
from torch import Tensor

from ...kernels.gated_delta import gated_delta_rule
from ...kernels.gated_linear_attention import gated_linear_attention
from ...kernels.softmax_attention import masked_attention
from ...lm.parts.errors import ConfigError
from ..console import binary, plain_table
from .drawing import generator

LOADS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
HEADER = ("P / d_k", "right", "known", "cosine", "known", "all right", "newest", "oldest", "state")
AGES = 4  # groups of equal size into which accuracy by age is split

# (accuracy, cosine) at d_k = 64, 64 labels and LOADS, by plain matrix products over 20 draws.
EXPECTED = {
    "linear attention": ((1.00, 0.95), (1.00, 0.90), (1.00, 0.82), (1.00, 0.71), (0.99, 0.58), (0.90, 0.45)),
    "delta rule": ((1.00, 0.97), (1.00, 0.93), (1.00, 0.84), (0.93, 0.68), (0.61, 0.44), (0.32, 0.24)),
    "softmax": ((1.00, 1.00),) * 6,
    "least squares": ((1.00, 1.00), (1.00, 1.00), (1.00, 1.00), (1.00, 1.00), (1.00, 0.70), (0.96, 0.50)),
}

Operator = Callable[[Tensor, Tensor], Tensor]
"""keys [B, P, d_k], values [B, P, n_labels] -> what is read at every key after all are written, [B, P, n_labels]."""


def linear_attention(keys: Tensor, values: Tensor, decay: float = 1.0) -> Tensor:
    """sum_j decay^(P - 1 - j) v_j (k_j . q)."""
    q, k, v, writes = _write_then_read(keys, values)
    o, _ = gated_linear_attention(q, k, v, writes * math.log(decay) if decay < 1 else None, scale=1.0)
    return o[:, keys.shape[1] :, 0]


def delta_rule(keys: Tensor, values: Tensor, decay: float = 1.0) -> Tensor:
    """The delta rule with beta = 1: every write replaces what its key read before."""
    q, k, v, writes = _write_then_read(keys, values)
    o, _ = gated_delta_rule(q, k, v, writes * math.log(decay) if decay < 1 else None, writes, scale=1.0)
    return o[:, keys.shape[1] :, 0]


def softmax_attention(keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """sum_j softmax_j(scale k_j . q) v_j over all pairs; scale: default sqrt(d_k), what unnormalised heads have."""
    d_k = keys.shape[2]
    scale = math.sqrt(d_k) if scale is None else scale
    everything = torch.ones(1, keys.shape[1], keys.shape[1], dtype=torch.bool)
    q, k, v = (x[:, :, None] for x in (keys * (scale * math.sqrt(d_k)), keys, values))
    return masked_attention(q, k, v, everything)[:, :, 0]


def least_squares(keys: Tensor, values: Tensor) -> Tensor:
    """q^T S with the smallest S that minimises sum_j |S^T k_j - v_j|^2: the best linear memory there is."""
    return (keys.double() @ torch.linalg.pinv(keys.double()) @ values.double()).to(values.dtype)


def _write_then_read(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [B, 2P, 1, ...] of P tokens that write and P that read; and [B, 2P, 1] with 1 where a token writes."""
    q, k, v = torch.cat((keys, keys), 1), F.pad(keys, (0, 0, 0, keys.shape[1])), F.pad(values, (0, 0, 0, keys.shape[1]))
    writes = F.pad(torch.ones_like(keys[..., :1]), (0, 0, 0, keys.shape[1]))
    return q[:, :, None], k[:, :, None], v[:, :, None], writes


@dataclass(frozen=True)
class CapacityCell:
    """One operator with `n_pairs` pairs. accuracy, cosine: means over pairs and draws, the cosine of what is read with
    the value. all_correct: share of the draws without an error. by_age: accuracy from the last pairs written to the
    first, in groups of equal size. state_bytes: float32 numbers the operator keeps to answer."""

    operator: str
    n_pairs: int
    accuracy: float
    cosine: float
    all_correct: float
    by_age: tuple[float, ...]
    state_bytes: int


@dataclass(frozen=True)
class Limit:
    """accurate: the most pairs at which the accuracy is still 0.99. flawless: those of which 95 % of the draws have no
    error. Both among 1 ... `most`."""

    accurate: int
    flawless: int
    most: int


@dataclass(frozen=True)
class Capacity:
    """What `capacity` found."""

    d_k: int
    n_labels: int
    trials: int
    cells: list[CapacityCell]
    limits: dict[str, Limit]

    def table(self) -> Group:
        """A table per operator, a row per load, with what is known to come out beside it."""
        return Group(
            f"d_k {self.d_k}, {self.n_labels} labels, {self.trials} draws of P pairs; all right: in 95 % of the draws; "
            "newest, oldest: accuracy on the last and the first quarter of what was written\n",
            *(plain_table(self._title(name), HEADER, self._rows(name)) for name in self.limits),
        )

    def _title(self, operator: str) -> str:
        limit = self.limits[operator]
        more = [" at least" if pairs == limit.most else "" for pairs in (limit.accurate, limit.flawless)]
        return (
            f"{operator}: 0.99 right up to{more[0]} {limit.accurate / self.d_k:.2f} d_k, "
            f"all right up to{more[1]} {limit.flawless}"
        )

    def _rows(self, operator: str) -> Iterator[tuple[str, ...]]:
        for cell in (cell for cell in self.cells if cell.operator == operator):
            accuracy, cosine = self.expected(cell)
            yield (
                f"{cell.n_pairs / self.d_k:g}",
                f"{cell.accuracy:.3f}",
                _or_dash(accuracy),
                f"{cell.cosine:.3f}",
                _or_dash(cosine),
                f"{cell.all_correct:.2f}",
                *(f"{cell.by_age[i]:.2f}" for i in (0, -1)),
                binary(cell.state_bytes),
            )

    def expected(self, cell: CapacityCell) -> tuple[float | None, float | None]:
        """Accuracy and cosine known for this cell: the table at d_k = 64, and for linear attention `cosine_law`."""
        accuracy = cosine = None
        load = cell.n_pairs / self.d_k
        if (self.d_k, self.n_labels) == (64, 64) and load in LOADS and cell.operator in EXPECTED:
            accuracy, cosine = EXPECTED[cell.operator][LOADS.index(load)]
        if cell.operator == "linear attention":
            cosine = cosine_law(cell.n_pairs, self.d_k)
        return accuracy, cosine


def capacity(
    d_k: int = 64,
    n_labels: int = 64,
    *,
    loads: Sequence[float] = LOADS,
    trials: int = 20,
    decay: float = 0.99,
    seed: int = 0,
) -> Capacity:
    """Measure every operator at `loads` pairs per dimension of the key, and look for the most pairs it holds.

    decay: of the gated operators, per write. Raises ConfigError on loads or a decay that make no sense.
    """
    if not loads or min(loads) <= 0:
        raise ConfigError(f"loads: {list(loads)}; give at least one, all positive, e.g. 0.5 1 2")
    if not 0 < decay < 1:
        raise ConfigError(f"decay: {decay:g} is not in (0, 1); use 0.99, for example")
    operators: dict[str, Operator] = {
        "linear attention": linear_attention,
        f"linear attention, decay {decay:g}": partial(linear_attention, decay=decay),
        "delta rule": delta_rule,
        f"delta rule, decay {decay:g}": partial(delta_rule, decay=decay),
        "softmax": softmax_attention,
        "least squares": least_squares,
    }
    counts = [max(1, round(load * d_k)) for load in loads]
    cells, limits = [], {}
    for name, operator in operators.items():
        at = partial(measure, name, operator, d_k=d_k, n_labels=n_labels, trials=trials, seed=seed)
        cells += [at(n_pairs) for n_pairs in counts]
        limits[name] = _limit(at, max(counts))
    return Capacity(d_k, n_labels, trials, cells, limits)


def _limit(at: Callable[[int], CapacityCell], most: int) -> Limit:
    """By bisection: but for noise, accuracy falls with the number of pairs."""
    tried = range(1, most + 1)
    accurate = bisect.bisect_left(tried, True, key=lambda n_pairs: at(n_pairs).accuracy < 0.99)
    flawless = bisect.bisect_left(tried, True, key=lambda n_pairs: at(n_pairs).all_correct < 0.95)
    return Limit(accurate, flawless, most)


def measure(
    name: str, operator: Operator, n_pairs: int, *, d_k: int, n_labels: int, trials: int, seed: int
) -> CapacityCell:
    """One cell: `trials` draws of random unit keys and labels."""
    rng = generator("capacity", seed)
    keys = F.normalize(torch.from_numpy(rng.standard_normal((trials, n_pairs, d_k), dtype="float32")), dim=-1)
    labels = torch.from_numpy(rng.integers(0, n_labels, (trials, n_pairs)))
    values = F.one_hot(labels, n_labels).float()
    read = operator(keys, values)  # [trials, n_pairs, n_labels]
    right = (read.argmax(-1) == labels).float()
    groups = right.mean(0).flip(0).tensor_split(min(AGES, n_pairs))
    kept = {"softmax": n_pairs * (d_k + n_labels), "least squares": d_k * (d_k + n_labels)}
    return CapacityCell(
        operator=name,
        n_pairs=n_pairs,
        accuracy=right.mean().item(),
        cosine=F.cosine_similarity(read, values, dim=-1).mean().item(),
        all_correct=right.amin(1).mean().item(),
        by_age=tuple(group.mean().item() for group in groups),
        state_bytes=4 * kept.get(name, d_k * n_labels),
    )


def cosine_law(n_pairs: int, d_k: int) -> float:
    """1 / sqrt(1 + (P - 1) / d_k): linear attention's cosine for unit keys at random and orthonormal values."""
    return 1 / math.sqrt(1 + (n_pairs - 1) / d_k)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
