"""Causal softmax attention over sequences of unequal length, by PyTorch's scaled_dot_product_attention.

Sequences of equal length are computed together as one dense batch, so packing costs no mask and no wasted product.
"""

from collections import defaultdict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .shared.sequences import HOST, Sequences


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sequences: Sequences,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """o_t = sum_j softmax_j(q_t k_j / sqrt(D)) v_j over j <= t, and t - j < window if given, within each sequence.

    q: [B, T, H, D]; k, v: [B, T, H_kv, D], H a multiple of H_kv. dropout: share of the softmax's weights set to 0, the
    rest scaled up. Returns [B, T, H, D].
    """
    if not sequences.packed:
        return _dense([q, k, v], window, dropout)
    if sequences.equal:
        rows = [x.view(len(sequences), sequences.longest, *x.shape[2:]) for x in (q, k, v)]
        return _dense(rows, window, dropout).reshape(q.shape)
    o = torch.empty_like(q[0])
    for group in sequences.once(_by_length, q.device):
        rows = [x[0].index_select(0, group.token.flatten()).unflatten(0, group.token.shape) for x in (q, k, v)]
        real = _dense(rows, window, dropout).flatten(0, 1).index_select(0, group.real)
        o = o.index_copy(0, group.real_token, real)
    return o[None]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention under a boolean mask. q: [N, T, H, D]; k, v: [N, S, H_kv, D]; allowed: [N, T, S]."""
    return _sdpa(q, k, v, allowed[:, None], dropout=dropout)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention over all keys or those `allowed` [N or 1, T, S]. q: [N, T, H, D]; k, v: [N, S, H_kv, D].

    For a single query the heads of a group stand in as its queries: keys are read as they lie, once for the group.
    """
    N, T, H, D = q.shape
    mask = None if allowed is None else allowed[:, None]
    if T != 1:
        return _sdpa(q, k, v, mask)
    grouped = q.view(N, k.shape[2], H // k.shape[2], D)  # [N, H_kv, H / H_kv, D]
    o = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return o.reshape(N, 1, H, D)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False, dropout: float = 0.0) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped).transpose(1, 2)


def _dense(qkv: list[Tensor], window: int | None, dropout: float) -> Tensor:
    q, k, v = qkv
    T = q.shape[1]
    if window is None or window >= T:
        return _sdpa(q, k, v, None, causal=True, dropout=dropout)
    return _banded(q, k, v, window, dropout)


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int, dropout: float) -> Tensor:
    """Query blocks of `window` tokens against their own and the previous block: work linear in T."""
    B, T = q.shape[:2]
    n = -(-T // window)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, n * window - T)).unflatten(1, (n, window)) for x in (q, k, v))
    previous = [F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1] for x in (k, v)]
    k, v = (torch.cat((old, x), 2) for old, x in zip(previous, (k, v), strict=True))  # [B, n, 2 * window, H_kv, D]
    t = torch.arange(window, device=q.device)[:, None]
    s = torch.arange(2 * window, device=q.device) - window  # key position relative to the block's start
    band = (s <= t) & (t - s < window)
    allowed = band.expand(n, -1, -1).clone()
    allowed[0, :, :window] = False  # the first block has no predecessor
    o = masked_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), allowed.repeat(B, 1, 1), dropout)
    return o.unflatten(0, (B, n)).flatten(1, 2)[:, :T]


class _Group(NamedTuple):
    """Sequences of about one length, as rows of T tokens."""

    token: Tensor  # [n, T], what stands behind a sequence's end is its first token again
    real: Tensor  # which of the n T are real, not padding
    real_token: Tensor  # and their tokens


def _by_length(sequences: Sequences, device: torch.device) -> list[_Group]:
    """Lengths are rounded up, exact under a causal mask, since oneDNN builds and keeps a kernel for each new shape."""
    members: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, length in zip(sequences.starts, sequences.lengths, strict=False):
        if length:
            members[_round_up(length)].append((start, length))
    groups = []
    for T, group in members.items():
        start, length = torch.tensor(group, device=HOST).T
        position = torch.arange(T, device=HOST)
        real = position < length[:, None]
        token = (start[:, None] + position).where(real, start[:, None])
        groups.append(_Group(*(x.to(device) for x in (token, real.flatten().nonzero().squeeze(1), token[real]))))
    return groups


def _round_up(length: int) -> int:
    """The next power of two up to 64, the next multiple of 64 beyond."""
    return 1 << (length - 1).bit_length() if length <= 64 else -(-length // 64) * 64
