"""Banded attention in PyTorch: the queries of a block of tokens against the blocks of its sink and of its window."""

from collections.abc import Sequence as Ints
from functools import partial

import torch
from torch import Tensor

from ..shared.band import visible
from ..shared.sdpa import by_length, sdpa
from .arguments import BandedArguments

BLOCK = 128  # tokens


def run(x: BandedArguments) -> Tensor:
    """As the reference, in the dtype of q."""
    return by_length(partial(banded_rows, sink=x.sink, window=x.window), x.q, x.k, x.v, x.sequences)


def banded_rows(q: Tensor, k: Tensor, v: Tensor, sink: Ints[int], window: Ints[int], dropout: float = 0.0) -> Tensor:
    """Of sequences of one length, q [N, T, H, D], k and v [N, T, H_kv, D]; see `banded_attention`.

    dropout: share of the softmax's weights set to 0, the rest scaled up.
    """
    T = q.shape[1]
    if all(s + w >= T for s, w in zip(sink, window, strict=True)):
        return sdpa(q, k, v, None, causal=True, dropout=dropout)
    k_blocks, v_blocks = k.split(BLOCK, 1), v.split(BLOCK, 1)
    outputs = []
    for i, queries in enumerate(q.split(BLOCK, 1)):
        first = max(i * BLOCK - max(window) + 1, 0) // BLOCK
        seen = [*range(min(-(-max(sink) // BLOCK), first)), *range(first, i + 1)]
        keys, values = (torch.cat([x[j] for j in seen], 1) for x in (k_blocks, v_blocks))
        position = torch.cat([torch.arange(j * BLOCK, min(j * BLOCK + BLOCK, T), device=q.device) for j in seen])
        allowed = visible(position[-queries.shape[1] :], position, sink, window)  # the own block is the last
        if allowed.ndim == 3:
            allowed = allowed.repeat_interleave(q.shape[2] // k.shape[2], 0)  # [H, C, S]
        outputs.append(sdpa(queries, keys, values, allowed, dropout=dropout))
    return torch.cat(outputs, 1)
