"""One token of gated linear attention, for decoding."""

import torch
from torch import Tensor

from ..shared.checks import state_dtype


def gated_linear_attention_step_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, *, state: Tensor, scale: float
) -> Tensor:
    """q, k: [N, H, K]; v: [N, H, V]; g: [N, H, K] or [N, H]; updates state [N, H, K, V] in place; returns o."""
    dtype = state_dtype(v.dtype)
    if g is not None:
        state *= (g if g.ndim == 3 else g.unsqueeze(-1)).to(dtype).exp().unsqueeze(-1)
    state += torch.einsum("nhk,nhv->nhkv", k.to(dtype), v.to(dtype))
    return torch.einsum("nhkv,nhk->nhv", state, scale * q.to(dtype)).to(v.dtype)
