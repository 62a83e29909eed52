"""One token of the gated delta rule, for decoding."""

import torch
from torch import Tensor

from ..shared.checks import state_dtype


def gated_delta_rule_step_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, *, state: Tensor, scale: float
) -> Tensor:
    """q, k: [N, H, K]; v: [N, HV, V]; g, beta: [N, HV]; updates state [N, HV, K, V] in place; returns o [N, HV, V]."""
    dtype = state_dtype(v.dtype)
    group = v.shape[1] // q.shape[1]
    q, k = (x.to(dtype).repeat_interleave(group, dim=1) for x in (q, k))
    if g is not None:
        state *= g.to(dtype).exp()[..., None, None]
    error = v.to(dtype) - torch.einsum("nhkv,nhk->nhv", state, k)
    state += torch.einsum("nhk,nhv->nhkv", k, beta.to(dtype)[..., None] * error)
    return torch.einsum("nhkv,nhk->nhv", state, scale * q).to(v.dtype)
