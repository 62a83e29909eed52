"""GLA: linear attention with a learned decay per key channel (Yang et al. 2023, arXiv 2312.06635, eq. 3 and sec. 4.4).

q, k, v = x W_qkv;  log alpha_t = logsigmoid(x W_a1 W_a2 + b_a) / 16
S_t = diag(alpha_t) S_{t-1} + k_t v_t^T;  o_t = S_t^T q_t / sqrt(K);  y = (RMSNorm(o) * silu(x W_g)) W_o
"""

from typing import Self

from pydantic import Field

from ..parts.ranges import WIDEST
from ..parts.shape import ModelShape
from .options import FROM_MODEL, ChunkedConfig, Size, head_count


class GLAConfig(ChunkedConfig):
    """4 heads (fewer below d_model = 128), keys half as wide as the model, values as wide: 4 d_model^2 parameters."""

    n_heads: Size = FROM_MODEL
    head_dim: Size = FROM_MODEL
    v_head_dim: Size = FROM_MODEL
    gate_rank: int = Field(default=16, gt=0, le=WIDEST)
    gate_normalizer: float = Field(default=16.0, ge=0.01, le=1e6)
    """What the log of the gate is divided by: the larger, the slower the memory forgets at first."""

    def resolve(self, shape: ModelShape) -> Self:
        n_heads = self.n_heads or head_count(shape.d_model, most=4, narrowest=32)
        v_head_dim = self.v_head_dim or max(1, shape.d_model // n_heads)
        head_dim = self.head_dim or max(1, shape.d_model // (2 * n_heads))
        return self.model_copy(update={"n_heads": n_heads, "head_dim": head_dim, "v_head_dim": v_head_dim})


import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_linear_attention, gated_linear_attention_flops
from ..parts.context import Context
from ..parts.norm import RMSNorm
from ..parts.state import LayerState
from .base import Mixed
from .recurrent import RecurrentMixer


class GLA(RecurrentMixer):
    """See the module's equations. The state is one K x V matrix per head."""

    Config = GLAConfig
    float32_parameters = ("a_bias",)

    def __init__(self, options: GLAConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.n_heads, self.head_dim = options.n_heads, options.head_dim
        self.v_head_dim = options.v_head_dim
        self.memory_shape = (self.n_heads, self.head_dim, self.v_head_dim)
        k, v = self.n_heads * self.head_dim, self.n_heads * self.v_head_dim
        self.qkv_proj = nn.Linear(shape.d_model, 2 * k + v, bias=False)
        self.a1_proj = nn.Linear(shape.d_model, options.gate_rank, bias=False)
        self.a2_proj = nn.Linear(options.gate_rank, k, bias=False)
        self.a_bias = nn.Parameter(torch.zeros(k))
        self.g_proj = nn.Linear(shape.d_model, v, bias=False)
        self.o_norm = RMSNorm(self.v_head_dim, shape.norm_eps)
        self.o_proj = nn.Linear(v, shape.d_model, bias=False)

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        keys = self.n_heads * self.head_dim
        qkv = self.qkv_proj(x).split([keys, keys, self.n_heads * self.v_head_dim], -1)
        q, k, v, g = (y.unflatten(-1, (self.n_heads, -1)) for y in (*qkv, self.log_decay(x)))  # [B, T, H, ...]
        o = self.recur(
            gated_linear_attention,
            (q, k, v, g),
            sequences,
            state,
        )
        gate = self.g_proj(x).unflatten(-1, (self.n_heads, self.v_head_dim))
        return Mixed(self.o_proj((self.o_norm(o) * F.silu(gate)).flatten(2)))

    def log_decay(self, x: Tensor) -> Tensor:
        """log alpha [B, T, H K], float32: a decay near 1 needs more digits than bfloat16 has."""
        logits = self.a2_proj(self.a1_proj(x))
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32)) + self.a_bias
        return F.logsigmoid(exact) / self.options.gate_normalizer

    def memory_flops(self) -> float:
        rule = gated_linear_attention_flops(self.head_dim, self.v_head_dim, self.options.chunk_size, "channel")
        return self.n_heads * rule
