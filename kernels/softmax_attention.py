"""Causal softmax attention over sequences of unequal length, by PyTorch's scaled_dot_product_attention.

Sequences of equal length are computed together as one dense batch, so packing costs no mask and no wasted product.
"""

from collections import defaultdict
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, lengths: tuple[int, ...] | None = None
) -> Tensor:
    """o_t = sum_j softmax_j(q_t k_j / sqrt(D)) v_j over j <= t, and t - j < window if given, within each sequence.

    q: [B, T, H, D]; k, v: [B, T, H_kv, D], H a multiple of H_kv. `lengths` None: B sequences of T tokens; else B is 1
    and the sequences lie end to end. Returns [B, T, H, D].
    """
    if lengths is None:
        return _dense([q, k, v], window)
    if len(set(lengths)) == 1:
        rows = [x.view(len(lengths), lengths[0], *x.shape[2:]) for x in (q, k, v)]
        return _dense(rows, window).reshape(q.shape)
    order, groups = _by_length(lengths)
    order = order.to(q.device)
    parts = [x[0, order].split([n * T for n, T in groups]) for x in (q, k, v)]
    outs = [
        _dense([x.view(n, T, *x.shape[1:]) for x in qkv], window).flatten(0, 1)
        for (n, T), qkv in zip(groups, zip(*parts, strict=True), strict=True)
    ]
    return torch.empty_like(q[0]).index_copy(0, order, torch.cat(outs))[None]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention under a boolean mask. q: [N, T, H, D]; k, v: [N, S, H_kv, D]; allowed: [N, T, S]."""
    return _sdpa(q, k, v, attn_mask=allowed[:, None])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **how) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **how).transpose(1, 2)


def _dense(qkv: list[Tensor], window: int | None) -> Tensor:
    q, k, v = qkv
    T = q.shape[1]
    if window is None or window >= T:
        return _sdpa(q, k, v, is_causal=True)
    return _banded(q, k, v, window)


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
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
    o = masked_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), allowed.repeat(B, 1, 1))
    return o.unflatten(0, (B, n)).flatten(1, 2)[:, :T]


@lru_cache(maxsize=64)
def _by_length(lengths: tuple[int, ...]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Token order that puts sequences of equal length together, and the groups as (sequences, length)."""
    starts: dict[int, list[int]] = defaultdict(list)
    offset = 0
    for length in lengths:
        if length:
            starts[length].append(offset)
        offset += length
    tokens = [(torch.tensor(at)[:, None] + torch.arange(length)).flatten() for length, at in starts.items()]
    return torch.cat(tokens), [(len(at), length) for length, at in starts.items()]
