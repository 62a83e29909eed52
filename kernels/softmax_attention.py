"""Causal softmax attention over sequences of unequal length, by PyTorch's scaled_dot_product_attention.

Sequences of equal length are computed together as one dense batch, so packing costs no mask and no wasted product.
"""

from collections import defaultdict
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    lengths: tuple[int, ...] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """o_t = sum_j softmax_j(q_t k_j / sqrt(D)) v_j over j <= t, and t - j < window if given, within each sequence.

    q: [B, T, H, D]; k, v: [B, T, H_kv, D], H a multiple of H_kv. `lengths` None: B sequences of T tokens; else B is 1
    and the sequences lie end to end. dropout: share of the softmax's weights set to 0, the rest scaled up. Returns
    [B, T, H, D].
    """
    if lengths is None:
        return _dense([q, k, v], window, dropout)
    if len(set(lengths)) == 1:
        rows = [x.view(len(lengths), lengths[0], *x.shape[2:]) for x in (q, k, v)]
        return _dense(rows, window, dropout).reshape(q.shape)
    o = torch.empty_like(q[0])
    for tokens, real in _by_length(lengths):
        tokens, real = tokens.to(q.device), real.to(q.device)
        rows = [x[0].index_select(0, tokens.flatten()).unflatten(0, tokens.shape) for x in (q, k, v)]
        o = o.index_copy(0, tokens[real], _dense(rows, window, dropout)[real])
    return o[None]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention under a boolean mask. q: [N, T, H, D]; k, v: [N, S, H_kv, D]; allowed: [N, T, S]."""
    return _sdpa(q, k, v, attn_mask=allowed[:, None], dropout_p=dropout)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **how) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **how).transpose(1, 2)


def _dense(qkv: list[Tensor], window: int | None, dropout: float) -> Tensor:
    q, k, v = qkv
    T = q.shape[1]
    if window is None or window >= T:
        return _sdpa(q, k, v, is_causal=True, dropout_p=dropout)
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


@lru_cache(maxsize=64)
def _by_length(lengths: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Groups of sequences of about one length: their tokens [n, T] and which of these are real, not padding.

    Lengths are rounded up, exact under a causal mask, since oneDNN builds and keeps a kernel for each new shape.
    """
    starts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    offset = 0
    for length in lengths:
        if length:
            starts[_round_up(length)].append((offset, length))
        offset += length
    groups = []
    for T, members in starts.items():
        start, length = torch.tensor(members).T
        position = torch.arange(T)
        real = position < length[:, None]
        groups.append(((start[:, None] + position).where(real, start[:, None]), real))
    return groups


def _round_up(length: int) -> int:
    """The next power of two up to 64, the next multiple of 64 beyond."""
    return 1 << (length - 1).bit_length() if length <= 64 else -(-length // 64) * 64
