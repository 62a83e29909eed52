"""Gated DeltaNet: a delta-rule memory that forgets (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464, eq. 10).

q, k, v = silu(conv(x W_qkv));  q, k = q / |q|, k / |k|
g_t = -exp(A_log) softplus(x W_a + dt_bias);  beta_t = sigmoid(x W_b)
S' = exp(g_t) S_{t-1};  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T;  o_t = S_t^T q_t / sqrt(K)
y = (RMSNorm(o) * silu(x W_g)) W_o
"""

from typing import Self

from pydantic import Field

from ..parts.ranges import Epsilon
from ..parts.shape import ModelShape
from .options import FROM_MODEL, ChunkedConfig, Size, head_sizes


class GatedDeltaNetConfig(ChunkedConfig):
    """Sizes default to keys of 3/4 and values of 3/2 the model's width, which makes 6 d_model^2 parameters."""

    n_heads: Size = FROM_MODEL
    n_v_heads: Size = FROM_MODEL
    """Value heads, a multiple of n_heads: several states share one query and key head (GVA)."""
    head_dim: Size = FROM_MODEL
    v_head_dim: Size = FROM_MODEL
    conv_size: int = Field(default=4, gt=0, le=1024)
    allow_negative_eigenvalues: bool = False
    """beta in (0, 2) instead of (0, 1): the state can flip sign along k (Grazzi et al. 2024, arXiv 2411.12537)."""
    norm_eps: Epsilon = 1e-5

    def resolve(self, shape: ModelShape) -> Self:
        width, n_heads = head_sizes(shape.d_model, None, self.n_heads)
        head_dim = self.head_dim or max(1, 3 * width // 4)
        n_v_heads = self.n_v_heads or n_heads
        if n_v_heads % n_heads:
            raise ValueError(f"gated_deltanet.n_v_heads: {n_v_heads} is no multiple of n_heads={n_heads}; use one")
        v_head_dim = self.v_head_dim or max(1, 2 * head_dim * n_heads // n_v_heads)
        sizes = {"n_heads": n_heads, "n_v_heads": n_v_heads, "head_dim": head_dim, "v_head_dim": v_head_dim}
        return self.model_copy(update=sizes)


import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_delta_rule, gated_delta_rule_flops
from ..parts.context import Context
from ..parts.norm import RMSNorm, l2_normalize
from ..parts.state import LayerState
from .base import Mixed
from .recurrent import RecurrentMixer, conv_kernel


class GatedDeltaNet(RecurrentMixer):
    """See the module's equations. The state is one K x V matrix per value head and the convolution's last inputs."""

    Config = GatedDeltaNetConfig
    float32_parameters = ("A_log", "dt_bias")

    def __init__(self, options: GatedDeltaNetConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.n_heads, self.n_v_heads = options.n_heads, options.n_v_heads
        self.head_dim, self.v_head_dim = options.head_dim, options.v_head_dim
        self.memory_shape = (self.n_v_heads, self.head_dim, self.v_head_dim)
        k, v = self.n_heads * self.head_dim, self.n_v_heads * self.v_head_dim
        self.qkv_proj = nn.Linear(shape.d_model, 2 * k + v, bias=False)
        self.conv = conv_kernel(2 * k + v, options.conv_size)
        self.ab_proj = nn.Linear(shape.d_model, 2 * self.n_v_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.n_v_heads).uniform_(0, 16).clamp(min=1e-4).log())
        dt = torch.empty(self.n_v_heads).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.g_proj = nn.Linear(shape.d_model, v, bias=False)
        self.o_norm = RMSNorm(self.v_head_dim, options.norm_eps)
        self.o_proj = nn.Linear(v, shape.d_model, bias=False)

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        keys = self.n_heads * self.head_dim
        qkv = self.convolve(self.qkv_proj(x), sequences, state)
        q, k, v = qkv.split([keys, keys, self.n_v_heads * self.v_head_dim], -1)
        g, beta = self._gates(x)  # [B, T, HV]
        o = self.recur(
            gated_delta_rule,
            (
                l2_normalize(q.unflatten(-1, (self.n_heads, self.head_dim))),
                l2_normalize(k.unflatten(-1, (self.n_heads, self.head_dim))),
                v.unflatten(-1, (self.n_v_heads, self.v_head_dim)),
                g,
                beta,
            ),
            sequences,
            state,
        )
        gate = self.g_proj(x).unflatten(-1, (self.n_v_heads, self.v_head_dim))
        return Mixed(self.o_proj((self.o_norm(o) * F.silu(gate)).flatten(2)))

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log decay g <= 0 and write strength beta, float32: a decay near 1 needs more digits than bfloat16 has."""
        ab = self.ab_proj(x)
        a, b = ab.to(torch.promote_types(ab.dtype, torch.float32)).chunk(2, -1)
        g = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        beta = b.sigmoid()
        return g, 2 * beta if self.options.allow_negative_eigenvalues else beta

    def memory_flops(self) -> float:
        group = self.n_v_heads // self.n_heads
        rule = gated_delta_rule_flops(self.head_dim, self.v_head_dim, self.options.chunk_size, group)
        return self.n_v_heads * rule
