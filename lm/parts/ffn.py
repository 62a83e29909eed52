"""SwiGLU feed-forward (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """y = down(silu(gate x) * (up x)); the gate and up matrices are one projection."""

    def __init__(self, d_model: int, hidden: int, bias: bool = False):
        super().__init__()
        self.gate_up_proj = nn.Linear(d_model, 2 * hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)

    def flops_per_token(self) -> int:
        """Forward matmul FLOPs per token."""
        return 2 * (self.gate_up_proj.weight.numel() + self.down_proj.weight.numel())
