"""How queries, keys and values come from the residual stream. Parameters belong to the mixer, under its own names."""

import math
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .options import AttentionConfig


class Projected(NamedTuple):
    """q [B, T, H head_dim], k and v [B, T, H_kv head_dim], heads side by side; the gate, like q, before its sigmoid."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None


class Projection(Protocol):
    """Adds its parameters to a mixer and applies them."""

    def build(self, mixer: Any, options: AttentionConfig, d_model: int) -> None: ...

    def __call__(self, mixer: Any, x: Tensor) -> Projected: ...

    def entries(self, mixer: Any) -> int:
        """Of all matrices together."""
        ...


class Trained:
    """One matrix for q, k and v, with a gate in it if there is one: each head's q, then its gate, as in Qwen3-Next."""

    def __init__(self, options: AttentionConfig):
        self.n_heads, self.head_dim, self.gate = options.n_heads, options.head_dim, options.gate
        q, kv = options.n_heads * options.head_dim, options.n_kv_heads * options.head_dim
        self.widths = [2 * q if options.gate else q, kv, kv]

    def build(self, mixer: Any, options: AttentionConfig, d_model: int) -> None:
        mixer.qkv_proj = nn.Linear(d_model, sum(self.widths), bias=options.bias != "none")

    def __call__(self, mixer: Any, x: Tensor) -> Projected:
        q, k, v = mixer.qkv_proj(x).split(self.widths, -1)
        if not self.gate:
            return Projected(q, k, v, None)
        q, gate = (y.flatten(2) for y in q.unflatten(-1, (self.n_heads, 2, self.head_dim)).unbind(-2))
        return Projected(q, k, v, gate)

    def entries(self, mixer: Any) -> int:
        return mixer.qkv_proj.weight.numel()


class Frozen:
    """Queries and keys by a fixed random matrix, a buffer, one for both where they are tied; see `AttentionConfig`."""

    def __init__(self, options: AttentionConfig):
        q, kv = options.n_heads * options.head_dim, options.n_kv_heads * options.head_dim
        self.tied, self.widths = options.tie_qk, [q, kv]

    def build(self, mixer: Any, options: AttentionConfig, d_model: int) -> None:
        rows = self.widths[0] if self.tied else sum(self.widths)
        mixer.register_buffer("qk_weight", torch.randn(rows, d_model) / math.sqrt(d_model))
        mixer.v_proj = nn.Linear(d_model, self.widths[1], bias=False)

    def __call__(self, mixer: Any, x: Tensor) -> Projected:
        qk = F.linear(x, mixer.qk_weight)
        q, k = (qk, qk) if self.tied else qk.split(self.widths, -1)
        return Projected(q, k, mixer.v_proj(x), None)

    def entries(self, mixer: Any) -> int:
        return mixer.qk_weight.numel() + mixer.v_proj.weight.numel()


def projection_of(options: AttentionConfig) -> Projection:
    """What the options ask for."""
    return Frozen(options) if options.freeze_qk else Trained(options)
