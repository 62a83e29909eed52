"""Softmax attention by PyTorch's scaled_dot_product_attention: causal with dropout, under a mask, and of one query."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from .banded_attention.chunked import banded_rows
from .shared.sdpa import by_length, sdpa
from .shared.sequences import Sequences


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sequences: Sequences,
    sink: int = 0,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """o_t = sum_j softmax_j(q_t k_j / sqrt(D)) v_j over j <= t within each sequence; with a window over those with
    t - j < window or j < sink.

    q: [B, T, H, D]; k, v: [B, T, H_kv, D], H a multiple of H_kv. dropout: share of the softmax's weights set to 0, the
    rest scaled up, which `banded_attention` has not. Returns [B, T, H, D].
    """
    windows = () if window is None else (window,) * k.shape[2]
    attend = partial(banded_rows, sink=(sink,) * len(windows), window=windows, dropout=dropout)
    return by_length(attend, q, k, v, sequences)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention under a boolean mask. q: [N, T, H, D]; k, v: [N, S, H_kv, D]; allowed: [N, T, S]."""
    return sdpa(q, k, v, allowed[:, None], dropout=dropout)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention over all keys or those `allowed` [N or 1, T, S]. q: [N, T, H, D]; k, v: [N, S, H_kv, D].

    For a single query the heads of a group stand in as its queries: keys are read as they lie, once for the group.
    """
    N, T, H, D = q.shape
    mask = None if allowed is None else allowed[:, None]
    if T != 1:
        return sdpa(q, k, v, mask)
    grouped = q.view(N, k.shape[2], H // k.shape[2], D)  # [N, H_kv, H / H_kv, D]
    o = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return o.reshape(N, 1, H, D)
