"""Which heads a token uses and what weighs them: all, or those that a router chooses (Mixture-of-Head attention).

    y_t = sum_i g_ti o_ti W_o^i over the heads i;  g_ti = 0 where the token does not use the head

Jin et al. 2024 (arXiv 2410.11842, eq. 5 to 10), in the scaled form of the published code: gates are 1 on average.
Parameters belong to the mixer, under its own names.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....kernels.operator import without_autocast
from ...parts.context import Context
from .balance import balance_loss, routing_stats, routing_telemetry
from .options import AttentionConfig, HeadsConfig

NONE: Mapping[str, Tensor] = MappingProxyType({})


class HeadGate(NamedTuple):
    """weight [B, T, H]: 0 where a token does not use a head, which then need not be computed, unless `everywhere`."""

    weight: Tensor
    everywhere: bool

    def times(self, o: Tensor) -> Tensor:
        """o [B, T, H, D], each head by its weight."""
        return (o * self.weight[..., None]).to(o.dtype)


class Routed(NamedTuple):
    """The gate, None where all heads count as they are; losses and stats as in `Mixed`."""

    gate: HeadGate | None
    losses: Mapping[str, Tensor] = NONE
    stats: Mapping[str, Tensor] = NONE


class Heads(Protocol):
    """Adds its parameters to a mixer and applies them."""

    active: int
    """Heads that are computed for a token."""

    def build(self, mixer: Any, d_model: int) -> None: ...

    def __call__(self, mixer: Any, x: Tensor, q: Tensor, sequences: Context) -> Routed:
        """Of x [B, T, d_model], the mixer's input, and its queries q [B, T, H head_dim] before any norm and RoPE."""
        ...

    def entries(self, mixer: Any) -> int:
        """Of all matrices together."""
        ...

    def telemetry(self, stats: dict[str, Tensor]) -> dict[str, float | list[float]]:
        """Of the stats of a step."""
        ...

    def before_step(self, done: float) -> None:
        """As `Mixer.before_step`."""
        ...


class AllHeads:
    """Each with weight 1."""

    def __init__(self, options: AttentionConfig):
        self.active = options.n_heads

    def build(self, mixer: Any, d_model: int) -> None:
        """Nothing to add."""

    def __call__(self, mixer: Any, x: Tensor, q: Tensor, sequences: Context) -> Routed:
        return Routed(None)

    def entries(self, mixer: Any) -> int:
        return 0

    def telemetry(self, stats: dict[str, Tensor]) -> dict[str, float | list[float]]:
        return {}

    def before_step(self, done: float) -> None:
        """All from first to last."""


class RoutedHeads:
    """What both routers share: `choices` heads or groups of heads are ranked and the first `chosen` used.

    Heads are counted shared ones first, then routed ones, in order; equal ranks go to the first.
    """

    def __init__(self, options: AttentionConfig, heads: HeadsConfig):
        self.options, self.n_heads, self.head_dim = heads, options.n_heads, options.head_dim
        self.shared, self.active = heads.shared, heads.active
        self.unit = options.n_heads // options.n_kv_heads if heads.route == "groups" else 1
        self.choices, self.chosen = (self.n_heads - self.shared) // self.unit, (self.active - self.shared) // self.unit
        self.routed_heads = tuple(sorted(set(range(self.n_heads)) - set(heads.shared_heads)))
        order = {head: i for i, head in enumerate((*heads.shared_heads, *self.routed_heads))}
        self.place = tuple(order[head] for head in range(self.n_heads))  # of each head among them
        self.exact = heads.router_dtype == "float32"

    def choose(self, scores: Tensor, p: Tensor) -> Tensor:
        """Which are used [B, T, choices], bool. The softmax keeps the order of the scores but for its rounding, by
        which the published models choose."""
        if self.chosen == self.choices:
            return torch.ones_like(p, dtype=torch.bool)
        ranked = (scores if self.exact else p).detach()
        first = ranked.argsort(dim=-1, descending=True, stable=True)[..., : self.chosen]
        return torch.zeros_like(p, dtype=torch.bool).scatter(-1, first, True)

    def routed(self, weight: Tensor, p: Tensor, used: Tensor, sequences: Context, norms: Tensor | None) -> Routed:
        """weight [B, T, H], shared heads first; p and used [B, T, choices]; norms [B, T, H] of the queries."""
        if self.place != tuple(range(self.n_heads)):
            weight = weight.index_select(-1, sequences.once(_on_device, self.place))
        everywhere = self.chosen == self.choices or self.needs_all()
        gate = HeadGate(weight.to(torch.promote_types(weight.dtype, torch.float32)), everywhere)
        if not self.choices or (sequences.tokens <= 1 and not sequences.packed):  # no token has a target
            return Routed(gate)
        loss = balance_loss(p, used, sequences, self.options.balance)
        losses = {"balance": self.options.balance.coef * loss} if self.options.balance.coef else NONE
        return Routed(gate, losses, routing_stats(p.detach(), used, loss.detach(), norms, sequences))

    def before_step(self, done: float) -> None:
        target = (self.active - self.shared) // self.unit
        left = max(1 - done / self.options.anneal, 0.0) if self.options.anneal else 0.0
        self.chosen = target + round(left * (self.choices - target))

    def needs_all(self) -> bool:
        """Whether gradients need heads that a token does not use."""
        return False

    def by_head(self, x: Tensor) -> Tensor:
        """[B, T, choices] -> [B, T, routed heads]."""
        return x if self.unit == 1 else x[..., None].expand(*x.shape, self.unit).flatten(-2)

    def telemetry(self, stats: dict[str, Tensor]) -> dict[str, float | list[float]]:
        if not stats:
            return {}
        return routing_telemetry(stats, self.shared, self.unit, self.place)


class LearnedRouter(RoutedHeads):
    """Two stages, of x alone (eq. 5 and 6, scaled):

    a = 2 softmax(W_h x);  shared: g = a_1 S softmax(W_s x);  routed: g = a_2 K softmax(W_r x over the K largest)

    S shared heads, K of the others in use. The matrices are the rows of `router`, W_h, W_s and W_r, and begin at 0:
    every gate in use is exactly 1. One shared head has s = 1 and no W_s; without shared or without routed heads there
    is no first stage. With groups W_r has a row per group, and its heads have one weight.
    """

    def __init__(self, options: AttentionConfig, heads: HeadsConfig):
        super().__init__(options, heads)
        stages = 2 if self.shared and self.choices else 0
        self.rows = [stages, self.shared if self.shared > 1 else 0, self.choices]

    def build(self, mixer: Any, d_model: int) -> None:
        mixer.float32_parameters = ("router",) if self.exact else ()
        mixer.router = nn.Parameter(torch.zeros(sum(self.rows), d_model))

    def __call__(self, mixer: Any, x: Tensor, q: Tensor, sequences: Context) -> Routed:
        stage, shared, routed = self.logits(mixer, x).split(self.rows, -1)
        p = routed.softmax(-1)
        used = self.choose(routed, p)
        weights = []
        if self.shared:
            weights.append(_scaled_softmax(shared) if self.shared > 1 else torch.ones_like(stage[..., :1]))
        if self.choices:
            weights.append(self.by_head(_scaled_softmax(routed, used)))
        if self.shared and self.choices:
            weights = [a * w for a, w in zip(_scaled_softmax(stage).split(1, -1), weights, strict=True)]
        return self.routed(torch.cat(weights, -1), p, used, sequences, None)

    def logits(self, mixer: Any, x: Tensor) -> Tensor:
        """[B, T, rows], in float32 at least, also under autocast."""
        if not self.exact:
            return F.linear(x, mixer.router)
        with without_autocast(x.device):
            return F.linear(x.to(torch.promote_types(x.dtype, torch.float32)), mixer.router)

    def entries(self, mixer: Any) -> int:
        return mixer.router.numel()


class QueryNormRouter(RoutedHeads):
    """Without parameters, for pretrained models (eq. 7 to 10): the heads with the longest queries are used, weight 1.

    n_i = ||q_i||;  p = softmax(n / std(n)) over the routed heads;  the gradient of a gate is that of its p

    The queries are those before RoPE, which keeps norms, and before a norm of them, which would make them equal. With
    groups n is the mean over the heads of a group.
    """

    def build(self, mixer: Any, d_model: int) -> None:
        """Nothing to add."""

    def __call__(self, mixer: Any, x: Tensor, q: Tensor, sequences: Context) -> Routed:
        q = q.unflatten(-1, (self.n_heads, self.head_dim))
        if self.exact:
            q = q.to(torch.promote_types(q.dtype, torch.float32))
        norms = torch.linalg.vector_norm(q, dim=-1)
        scores = norms.index_select(-1, sequences.once(_on_device, self.routed_heads))
        if self.unit > 1:
            scores = scores.unflatten(-1, (self.choices, self.unit)).mean(-1)
        p = self.normalised(scores).softmax(-1)
        used = self.choose(scores, p)
        # forward 0 or 1 exactly: p - p is 0
        slope = p - p.detach()
        routed = used + (slope if self.options.straight_through == "dense" else used * slope)
        weight = torch.cat((routed.new_ones(*routed.shape[:-1], self.shared), self.by_head(routed)), -1)
        return self.routed(weight, p, used, sequences, norms.detach())

    def normalised(self, scores: Tensor) -> Tensor:
        """By the unbiased standard deviation over the routed heads (not in the paper's text), if it is above norm_eps.

        Two would always be as far apart, whatever their norms, and no gradient would reach these: they stay undivided.
        """
        if self.options.normalise == "none" or self.choices < 3 or not scores.numel():
            return scores
        std = scores.std(-1, keepdim=True)
        # centred, which the softmax does not see: else the gradients of score and deviation cancel in large numbers
        centred = scores - scores.mean(-1, keepdim=True) if self.exact else scores
        return centred / std.where(std > self.options.norm_eps, 1)

    def needs_all(self) -> bool:
        return self.options.straight_through == "dense" and torch.is_grad_enabled()

    def entries(self, mixer: Any) -> int:
        return 0


def heads_of(options: AttentionConfig) -> Heads:
    """What the options ask for."""
    heads = options.heads
    if heads is None:
        return AllHeads(options)
    return LearnedRouter(options, heads) if heads.router == "moh" else QueryNormRouter(options, heads)


def _scaled_softmax(logits: Tensor, used: Tensor | None = None) -> Tensor:
    """n softmax over the last axis, or over the n of them that are `used` and 0 elsewhere: exactly 1 for equal logits.

    Over all and then divided by the sum over the used is the same number, but for its rounding.
    """
    e = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    if used is None:
        return logits.shape[-1] * e / e.sum(-1, keepdim=True)
    e = e * used
    return used.sum(-1, keepdim=True) * e / e.sum(-1, keepdim=True)


def _on_device(sequences: Context, numbers: tuple[int, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=sequences.device)
