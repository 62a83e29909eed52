"""Softmax attention with the whole matrix of scores: what the attention operators' references are made of."""

import math

import torch
from torch import Tensor

from .band import seen_by_head, visible
from .checks import state_dtype
from .sequences import Sequences


def attention(
    q: Tensor, k: Tensor, v: Tensor, sink: tuple[int, ...], window: tuple[int, ...], sequences: Sequences
) -> Tensor:
    """sum_j softmax_j(q_ti k_j / sqrt(D)) v_j over the keys that query t of head i sees, see `band`.

    Computed in float32, or float64 if q is, one sequence at a time. Returns [B, T, H, D] in that dtype.
    """
    shape, dtype = q.shape, state_dtype(q.dtype)
    q, k, v = (x.to(dtype).flatten(0, 1) for x in (q, k, v))  # [B*T, ...]
    starts, outputs = sequences.starts, []
    for n in range(len(sequences)):
        tokens, position = slice(starts[n], starts[n + 1]), torch.arange(starts[n + 1] - starts[n], device=q.device)
        outputs.append(_attend(q[tokens], k[tokens], v[tokens], visible(position, position, sink, window)))
    return torch.cat(outputs).view(shape)


def attention_step(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """One query of each sequence [N, H, D] over its keys. Returns [N, H, D] in float32, or float64 if q is."""
    dtype, (N, _, _), (S, kv_heads) = state_dtype(q.dtype), q.shape, k.shape[1:3]
    mask = q.new_ones(N, S, dtype=torch.bool) if seen is None else seen
    heads = seen_by_head(mask, kv_heads).transpose(1, 2)[:, :, None]  # [N, H_kv, 1, S]
    rows = zip(*(x.to(dtype) for x in (q, k, v)), heads, strict=True)
    o = [_attend(q[None], k, v, seen)[0] for q, k, v, seen in rows]
    return torch.stack(o) if o else q.to(dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """q [T, H, D], k and v [S, H_kv, D], seen [T, S] or [H_kv, T, S] -> [T, H, D]."""
    heads = q.unflatten(1, (k.shape[1], -1))  # [T, H_kv, H / H_kv, D]
    scores = torch.einsum("thgd,shd->hgts", heads, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen.unsqueeze(-3), -math.inf).softmax(-1)
    return torch.einsum("hgts,shd->thgd", weights, v).flatten(1, 2)
