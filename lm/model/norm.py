"""RMSNorm and l2 normalisation, statistics in float32."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).

    Statistics in float32 at least. The output has x's dtype, or the autocast dtype where autocast is on: several
    projections read it, and each would cast it anew.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        out = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _Normalize.apply(x, self.weight, 1 / x.shape[-1], self.eps, out)  # type: ignore[return-value]


def l2_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum(x^2) + eps) over the last axis; eps inside the root keeps the gradient of a zero vector finite."""
    return _Normalize.apply(x, None, 1.0, eps, x.dtype)  # type: ignore[return-value]


class _Normalize(torch.autograd.Function):
    """y = x r w with r = (share * sum(x^2) + eps)^(-1/2). PyTorch's composite form makes more passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, share: float, eps: float, out: torch.dtype) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        r = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().mul_(share).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        ctx.share = share
        y = exact * r
        return (y if weight is None else y.mul_(weight)).to(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, weight, r = ctx.saved_tensors
        dy = dy.to(r.dtype)
        normal = x.to(r.dtype) * r
        d = dy if weight is None else dy * weight
        # dx = r (d - share <d, x r> x r)
        along = torch.linalg.vecdot(d, normal).unsqueeze(-1).mul_(-ctx.share)
        dx = torch.addcmul(d, normal, along).mul_(r).to(x.dtype)
        dw = None if weight is None else dy.mul(normal).flatten(0, -2).sum(0).to(weight.dtype)
        return dx, dw, None, None, None
