"""DeltaNet: a linear memory that corrects what it recalls (Yang et al. 2024, arXiv 2406.06484, sec. 2.2).

q, k, v = silu(conv(x W_qkv));  q, k = q / |q|, k / |k|;  beta_t = sigmoid(x W_b)
S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T;  o_t = S_t^T q_t / sqrt(K);  y = RMSNorm(o) W_o
"""

from typing import Self

from pydantic import Field

from ..parts.shape import ModelShape
from .options import FROM_MODEL, ChunkedConfig, Size, head_sizes


class DeltaNetConfig(ChunkedConfig):
    """Heads default to width 128 (a quarter of d_model below 512), keys and values alike: 4 d_model^2 parameters."""

    n_heads: Size = FROM_MODEL
    head_dim: Size = FROM_MODEL
    conv_size: int = Field(default=4, gt=0, le=1024)
    allow_negative_eigenvalues: bool = False
    """beta in (0, 2) instead of (0, 1): the state can flip sign along k (Grazzi et al. 2024, arXiv 2411.12537)."""
    output_gate: bool = False
    """RMSNorm(o) * silu(x W_g), as in Gated DeltaNet."""

    def resolve(self, shape: ModelShape) -> Self:
        head_dim, n_heads = head_sizes(shape.d_model, self.head_dim, self.n_heads, widest=128)
        return self.model_copy(update={"n_heads": n_heads, "head_dim": head_dim})


import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_delta_rule, gated_delta_rule_flops
from ..parts.context import Context
from ..parts.norm import RMSNorm, l2_normalize
from ..parts.state import LayerState
from .base import Mixed
from .recurrent import RecurrentMixer, conv_kernel


class DeltaNet(RecurrentMixer):
    """See the module's equations. The state is one K x K matrix per head and the convolution's last inputs."""

    Config = DeltaNetConfig

    def __init__(self, options: DeltaNetConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.n_heads, self.head_dim = options.n_heads, options.head_dim
        self.memory_shape = (self.n_heads, self.head_dim, self.head_dim)
        width = self.n_heads * self.head_dim
        self.qkv_proj = nn.Linear(shape.d_model, 3 * width, bias=False)
        self.conv = conv_kernel(3 * width, options.conv_size)
        self.b_proj = nn.Linear(shape.d_model, self.n_heads, bias=False)
        self.g_proj = nn.Linear(shape.d_model, width, bias=False) if options.output_gate else None
        self.o_norm = RMSNorm(self.head_dim, shape.norm_eps)
        self.o_proj = nn.Linear(width, shape.d_model, bias=False)

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        qkv = self.convolve(self.qkv_proj(x), sequences, state)
        q, k, v = qkv.unflatten(-1, (3, self.n_heads, self.head_dim)).unbind(-3)  # [B, T, H, K]
        o = self.recur(
            gated_delta_rule,
            (l2_normalize(q), l2_normalize(k), v, None, self._write_strength(x)),
            sequences,
            state,
        )
        o = self.o_norm(o).flatten(2)
        return Mixed(self.o_proj(o if self.g_proj is None else o * F.silu(self.g_proj(x))))

    def _write_strength(self, x: Tensor) -> Tensor:
        """beta [B, T, H], float32."""
        b = self.b_proj(x)
        beta = b.to(torch.promote_types(b.dtype, torch.float32)).sigmoid()
        return 2 * beta if self.options.allow_negative_eigenvalues else beta

    def memory_flops(self) -> float:
        return self.n_heads * gated_delta_rule_flops(self.head_dim, self.head_dim, self.options.chunk_size)
