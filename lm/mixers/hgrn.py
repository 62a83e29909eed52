"""HGRN: a state vector that forgets more slowly the deeper its layer (Qin et al. 2023, arXiv 2311.04823, sec. 3).

i, f^, g = x W_ifg;  f_t = lb + (1 - lb) sigmoid(f^_t), lb the layer's row of the model's `LowerBounds`
h_t = f_t h_{t-1} + (1 - f_t) silu(i_t);  y = (RMSNorm(h) * silu(g)) W_o

This is the real-valued form of flash-linear-attention and of the hybrid study (arXiv 2507.06457); the paper's own state
is complex with a learned rotation.
"""

from pydantic import Field

from ..parts.shape import ModelShape
from .options import MixerConfig


class HGRNConfig(MixerConfig):
    """4 expand_ratio d_model^2 parameters."""

    expand_ratio: int = Field(default=1, gt=0, le=1024)
    """Channels of the state per channel of the shape."""


import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_scan
from ..parts.context import Context
from ..parts.norm import RMSNorm
from ..parts.state import LayerState
from .base import Mixed
from .lower_bounds import LowerBounds, forget_gate
from .recurrent import RecurrentMixer


class HGRN(RecurrentMixer):
    """See the module's equations. The state is one vector."""

    Config = HGRNConfig

    def __init__(self, options: HGRNConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        width = options.expand_ratio * shape.d_model
        self.memory_shape = (width,)
        self.ifg_proj = nn.Linear(shape.d_model, 3 * width, bias=False)
        self.o_norm = RMSNorm(width, shape.norm_eps)
        self.o_proj = nn.Linear(width, shape.d_model, bias=False)

    @classmethod
    def shared(cls, layers: list[HGRNConfig], shape: ModelShape) -> LowerBounds:
        return LowerBounds("hgrn", [layer.expand_ratio * shape.d_model for layer in layers], shape)

    def forward(
        self, x: Tensor, sequences: Context, state: LayerState | None = None, bounds: Tensor | None = None
    ) -> Mixed:
        i, f, g = self.ifg_proj(x).chunk(3, -1)  # [B, T, W]
        log_f, write = forget_gate(f, bounds)
        h = self.recur(gated_scan, ((write * F.silu(i)).to(i.dtype), log_f), sequences, state)
        return Mixed(self.o_proj(self.o_norm(h) * F.silu(g)))

    def memory_flops(self) -> float:
        return 0.0  # element-wise, no matmul
