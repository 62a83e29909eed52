"""RMSNorm and l2 normalisation, statistics in float32."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALL = 1 << 14  # elements


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).

    Statistics in float32 at least. The output has x's dtype, or the autocast dtype where autocast is on: several
    projections read it, and each would cast it anew. It is rounded once, unless the norm has Llama's rounding, see
    `HybridLM`, and both x and weight are of lower precision: then x / sqrt(..) is rounded before the weight multiplies.

    zero_centered: 1 + weight multiplies, in float32 at least, and the weight starts at 0 (Gemma, Qwen3-Next).
    """

    llama_rounding = False

    def __init__(self, dim: int, eps: float, zero_centered: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim) if zero_centered else torch.ones(dim))
        self.eps, self.zero_centered = eps, zero_centered

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        out = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        weight = self.weight
        if self.zero_centered:
            weight = 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))
        if out == x.dtype and _is_small(x):
            return F.rms_norm(x, x.shape[-1:], weight, self.eps)
        share = 1 / x.shape[-1]
        return _normalize(x, weight, share, self.eps, self.llama_rounding, out)


def l2_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum(x^2) + eps) over the last axis; eps inside the root keeps the gradient of a zero vector finite."""
    if _is_small(x):
        dim = x.shape[-1]
        return F.rms_norm(x, (dim,), eps=eps / dim) * dim**-0.5
    return _normalize(x, None, 1.0, eps, False, x.dtype)


def _is_small(x: Tensor) -> bool:
    """Whether PyTorch's own norm serves, while decoding: the Function below is faster on more, and in half precision
    rounds once."""
    few = not torch.compiler.is_compiling() and x.numel() <= SMALL  # there it may be a symbol
    return few and x.dtype == torch.float32 and not torch.is_grad_enabled()


def _normalize(
    x: Tensor, weight: Tensor | None, share: float, eps: float, llama_rounding: bool, out: torch.dtype
) -> Tensor:
    """x r w with r = (share * sum(x^2) + eps)^(-1/2), rounded to `out`."""
    if not torch.compiler.is_compiling():
        return _Normalize.apply(x, weight, share, eps, llama_rounding, out)  # type: ignore[return-value]
    exact = x.to(torch.promote_types(x.dtype, torch.float32))  # a compiler makes one pass of these
    y = exact * (exact.square().sum(-1, keepdim=True) * share + eps).rsqrt()
    if llama_rounding:
        y = y.to(x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype))
    return (y if weight is None else y * weight).to(out)


class _Normalize(torch.autograd.Function):
    """See `_normalize`. PyTorch's composite form makes more passes over memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, share: float, eps: float, llama_rounding: bool, out: torch.dtype
    ) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        stored = exact.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
        early = llama_rounding and stored != exact.dtype
        if early:  # slower, but the order of the sum is transformers', and a bit decides how its result is rounded
            r = exact.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        else:
            r = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().mul_(share).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        ctx.share = share
        y = exact * r
        if early:
            y = y.to(stored)
        return (y if weight is None else y.mul_(weight)).to(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        x, weight, r = ctx.saved_tensors
        dy = dy.to(r.dtype)
        normal = x.to(r.dtype) * r
        d = dy if weight is None else dy * weight
        # dx = r (d - share <d, x r> x r)
        along = torch.linalg.vecdot(d, normal).unsqueeze(-1).mul_(-ctx.share)
        dx = torch.addcmul(d, normal, along).mul_(r).to(x.dtype)
        dw = None if weight is None else dy.mul(normal).flatten(0, -2).sum(0).to(weight.dtype)
        return dx, dw, None, None, None, None
