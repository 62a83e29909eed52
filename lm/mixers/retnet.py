"""RetNet: linear attention that fades at a fixed rate per head (Sun et al. 2023, arXiv 2307.08621, eq. 6 and 8).

q, k, v = x W_qkv;  q, k = rope(q), rope(k);  gamma_h = 1 - 2^(-5-h), h = 0 .. H - 1
S_t = gamma_h S_{t-1} + k_t v_t^T;  o_t = S_t^T q_t / sqrt(K);  y = (RMSNorm(o) * silu(x W_g)) W_o
"""

from typing import Self

from ..parts.shape import ModelShape
from .options import FROM_MODEL, ChunkedConfig, Size, SizeOfPairs, head_count


class RetNetConfig(ChunkedConfig):
    """8 heads (fewer below d_model = 128), keys as wide as the model and values twice that: 8 d_model^2 parameters."""

    n_heads: Size = FROM_MODEL
    head_dim: SizeOfPairs = FROM_MODEL
    v_head_dim: Size = FROM_MODEL

    def resolve(self, shape: ModelShape) -> Self:
        n_heads = self.n_heads or head_count(shape.d_model, most=8, narrowest=16)
        head_dim = self.head_dim or 2 * max(1, shape.d_model // (2 * n_heads))
        if head_dim % 2:
            raise ValueError(f"retnet.head_dim: {head_dim} is odd, RoPE rotates pairs; use an even one")
        sizes = {"n_heads": n_heads, "head_dim": head_dim, "v_head_dim": self.v_head_dim or 2 * head_dim}
        return self.model_copy(update=sizes)


import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_linear_attention, gated_linear_attention_flops
from ..parts.context import Context
from ..parts.norm import RMSNorm
from ..parts.rope import rotate, tables
from ..parts.rope_config import RopeConfig
from ..parts.state import LayerState
from .base import Mixed
from .recurrent import RecurrentMixer

ROPE = RopeConfig()


class RetNet(RecurrentMixer):
    """See the module's equations. The state is one K x V matrix per head."""

    Config = RetNetConfig

    def __init__(self, options: RetNetConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.n_heads, self.head_dim = options.n_heads, options.head_dim
        self.v_head_dim = options.v_head_dim
        self.memory_shape = (self.n_heads, self.head_dim, self.v_head_dim)
        k, v = self.n_heads * self.head_dim, self.n_heads * self.v_head_dim
        self.qkv_proj = nn.Linear(shape.d_model, 2 * k + v, bias=False)
        self.g_proj = nn.Linear(shape.d_model, v, bias=False)
        self.o_norm = RMSNorm(self.v_head_dim, shape.norm_eps)
        self.o_proj = nn.Linear(v, shape.d_model, bias=False)

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        keys = self.n_heads * self.head_dim
        qkv = self.qkv_proj(x).split([keys, keys, self.n_heads * self.v_head_dim], -1)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)) for y in qkv)  # [B, T, H, ...]
        cos, sin = tables(ROPE, self.head_dim, sequences, torch.float32)
        o = self.recur(
            gated_linear_attention,
            (rotate(q, cos, sin), rotate(k, cos, sin), v, self.log_decay(x).expand(q.shape[:3])),
            sequences,
            state,
        )
        gate = self.g_proj(x).unflatten(-1, (self.n_heads, self.v_head_dim))
        return Mixed(self.o_proj((self.o_norm(o) * F.silu(gate)).flatten(2)))

    def log_decay(self, x: Tensor) -> Tensor:
        """log gamma_h [H], float32 at least; no buffer, which a model cast to bfloat16 would round to 1."""
        h = torch.arange(self.n_heads, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.log1p(-torch.exp2(-5 - h))

    def memory_flops(self) -> float:
        rule = gated_linear_attention_flops(self.head_dim, self.v_head_dim, self.options.chunk_size, "head")
        return self.n_heads * rule
