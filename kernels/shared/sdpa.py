"""PyTorch's scaled_dot_product_attention on rows [N, T, H, D], and over sequences of unequal length.

Sequences of equal length are computed together as one dense batch, so packing costs no mask and no wasted product.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sequences import HOST, Sequences


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """q: [N, T, H, D]; k, v: [N, S, H_kv, D]; mask: bool, spread to [N, H, T, S]. Returns [N, T, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped).transpose(1, 2)


def by_length(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, sequences: Sequences
) -> Tensor:
    """attend(q, k, v) on rows [N, T, heads, D] of sequences that begin at the first token, for q, k, v [B, T, heads, D]
    of `sequences`. What stands behind a sequence's end may be anything: attention is causal."""
    if not sequences.packed:
        return attend(q, k, v)
    if sequences.equal:
        q_rows, k_rows, v_rows = (x.view(len(sequences), sequences.longest, *x.shape[2:]) for x in (q, k, v))
        return attend(q_rows, k_rows, v_rows).reshape(q.shape)
    o = torch.empty_like(q[0])
    for group in sequences.once(_groups, q.device):
        q_rows, k_rows, v_rows = (
            x[0].index_select(0, group.token.flatten()).unflatten(0, group.token.shape) for x in (q, k, v)
        )
        real = attend(q_rows, k_rows, v_rows).flatten(0, 1).index_select(0, group.real)
        o = o.index_copy(0, group.real_token, real)
    return o[None]


class _Group(NamedTuple):
    """Sequences of about one length, as rows of T tokens."""

    token: Tensor  # [n, T], what stands behind a sequence's end is its first token again
    real: Tensor  # which of the n T are real, not padding
    real_token: Tensor  # and their tokens


def _groups(sequences: Sequences, device: torch.device) -> list[_Group]:
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
