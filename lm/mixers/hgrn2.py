"""HGRN-2: HGRN with state matrices, a gated linear attention with keys 1 - f (Qin et al. 2024, arXiv 2404.07904).

q, f^, v = x W_qfv;  q = silu(q);  f_t = lb + (1 - lb) sigmoid(f^_t), lb the layer's row of the model's `LowerBounds`
S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T;  o_t = S_t^T q_t / sqrt(K);  y = RMSNorm(o) W_o, the norm over all heads
"""

from typing import Self

from ..parts.shape import ModelShape
from .options import FROM_MODEL, ChunkedConfig, Size, head_sizes


class HGRN2Config(ChunkedConfig):
    """Heads default to 128 keys (a quarter of d_model below 512); together their values are as wide as the model."""

    n_heads: Size = FROM_MODEL
    head_dim: Size = FROM_MODEL
    """Keys of a head, the paper's expand ratio: how many times larger the state is than HGRN's."""

    def resolve(self, shape: ModelShape) -> Self:
        head_dim, n_heads = head_sizes(shape.d_model, self.head_dim, self.n_heads, widest=128)
        if shape.d_model % n_heads:
            raise ValueError(f"hgrn2.n_heads: {n_heads} does not divide d_model={shape.d_model}; use a divisor")
        return self.model_copy(update={"n_heads": n_heads, "head_dim": head_dim})


import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_linear_attention, gated_linear_attention_flops
from ..parts.context import Context
from ..parts.norm import RMSNorm
from ..parts.state import LayerState
from .base import Mixed
from .lower_bounds import LowerBounds, forget_gate
from .recurrent import RecurrentMixer


class HGRN2(RecurrentMixer):
    """See the module's equations. The state is one K x V matrix per head."""

    Config = HGRN2Config

    def __init__(self, options: HGRN2Config, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.n_heads, self.head_dim = options.n_heads, options.head_dim
        self.v_head_dim = shape.d_model // self.n_heads
        self.memory_shape = (self.n_heads, self.head_dim, self.v_head_dim)
        self.qfv_proj = nn.Linear(shape.d_model, 2 * self.n_heads * self.head_dim + shape.d_model, bias=False)
        self.o_norm = RMSNorm(shape.d_model, shape.norm_eps)
        self.o_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)

    @classmethod
    def shared(cls, layers: list[HGRN2Config], shape: ModelShape) -> LowerBounds:
        return LowerBounds("hgrn2", [layer.n_heads * layer.head_dim for layer in layers], shape)

    def forward(
        self, x: Tensor, sequences: Context, state: LayerState | None = None, bounds: Tensor | None = None
    ) -> Mixed:
        keys = self.n_heads * self.head_dim
        q, f, v = self.qfv_proj(x).split([keys, keys, self.n_heads * self.v_head_dim], -1)
        log_f, k = forget_gate(f, bounds)
        heads = (y.unflatten(-1, (self.n_heads, -1)) for y in (F.silu(q), k.to(v.dtype), v, log_f))  # [B, T, H, ...]
        o = self.recur(
            gated_linear_attention,
            tuple(heads),
            sequences,
            state,
        )
        return Mixed(self.o_proj(self.o_norm(o.flatten(2))))

    def memory_flops(self) -> float:
        rule = gated_linear_attention_flops(self.head_dim, self.v_head_dim, self.options.chunk_size, "channel")
        return self.n_heads * rule
