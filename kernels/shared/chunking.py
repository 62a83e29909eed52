"""What the chunk-parallel PyTorch forms of the recurrences share: segments that stay in cache, decays within a chunk.

A segment is a range of steps of `Chunks`; its R = chunks * heads matrices are worked on together.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from .sequences import Chunks

MIN_LOG_DECAY = -80.0  # exp(-80) = 2e-35 counts as nothing, and underflow below it makes exp ten times slower on a CPU
RESET = -1e3  # exp of it is 0 in float64 too, and sums of a chunk of them keep the digits of the gates between them
SEGMENT = 2**17  # elements of the C x C matrices worked on at a time: they and their kind stay in cache


def segments(chunks: Chunks, n_heads: int) -> list[tuple[int, int]]:
    """Ranges of steps small enough for their matrices to stay in cache."""
    rows = max(1, SEGMENT // (n_heads * chunks.size**2))
    ranges, start = [], 0
    for stop in range(1, len(chunks.active) + 1):
        if stop == len(chunks.active) or chunks.first_row[stop + 1] - chunks.first_row[start] > rows:
            ranges.append((start, stop))
            start = stop
    return ranges


def step_rows(chunks: Chunks, start: int, stop: int, n_heads: int) -> list[slice]:
    """Rows of each step's matrices within the segment."""
    first = chunks.first_row[start : stop + 1]
    return [slice((a - first[0]) * n_heads, (b - first[0]) * n_heads) for a, b in itertools.pairwise(first)]


def gather(chunks: Chunks, x: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """A segment's copy of x [B, T, H, ...]: [R, C, ...], contiguous, free to be overwritten."""
    part = chunks.gather(x, start, stop)
    return torch.empty_like(part, dtype=dtype, memory_format=torch.contiguous_format).copy_(part).flatten(0, 1)


def scatter(chunks: Chunks, part: Tensor, out: Tensor, start: int, stop: int) -> None:
    """Writes a segment [R, C, ...] to its tokens in out [B, T, H, ...]."""
    chunks.scatter(part.unflatten(0, (-1, out.shape[2])), out, start, stop)


def ordered(state: Tensor, chunks: Chunks) -> Tensor:
    """A copy of the sequences' states [N, H, K, V] in the order of the chunks' rows: [N*H, K, V]."""
    return (state.clone() if chunks.order is None else state.index_select(0, chunks.order)).flatten(0, 1)


def restored(rows: Tensor, chunks: Chunks, n_heads: int) -> Tensor:
    """Inverse of `ordered`."""
    state = rows.unflatten(0, (-1, n_heads))
    return state if chunks.order is None else torch.empty_like(state).index_copy_(0, chunks.order, state)


class HeadDecay(NamedTuple):
    """exp of sums of g over parts of a chunk, for one gate per head; G is the running sum."""

    between: Tensor  # [R, C, C] exp(G_i - G_j) where i >= j, 1 above
    since: Tensor  # [R, C, 1] exp(G_i), from the chunk's start
    until: Tensor  # [R, C, 1] exp(G_C - G_j), to its end


def head_decay(g: Tensor, dtype: torch.dtype) -> HeadDecay:
    """g: [R, C], overwritten if it is float64: differences of large float32 sums would lose three digits."""
    total = g.double().clamp_(min=RESET).cumsum_(-1)
    between = total.new_empty(*total.shape, total.shape[-1], dtype=dtype)
    torch.sub(total.unsqueeze(-1), total.unsqueeze(-2), out=between)
    since = total.clamp(min=MIN_LOG_DECAY).exp_()
    until = (total[:, -1:] - total).clamp_(min=MIN_LOG_DECAY).exp_()
    between = between.clamp_(MIN_LOG_DECAY, 0).exp_()
    return HeadDecay(between, since.to(dtype).unsqueeze(-1), until.to(dtype).unsqueeze(-1))


def head_decay_grad(pairs: Tensor, since: Tensor, until: Tensor) -> Tensor:
    """The gradient dg [R, C], from the gradients by each exponent: `pairs` [R, C, C] is 0 from the diagonal on.

    A pair (i, j) sees the gates j+1..i, `since` [R, C] those up to i, `until` those behind j. Only what a gate is seen
    by is added up: differences of sums over the whole chunk would cancel.
    """
    dg = since.flip(-1).cumsum(-1).flip(-1)
    dg[:, 1:] += until[:, :-1].cumsum(-1)
    dg[:, 1:] += pairs.cumsum(-1).tril_(-1).sum(-2)[:, :-1]
    return dg
