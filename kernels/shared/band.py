"""What a query of banded attention sees, and the arguments that attention operators share.

A query at position t of its document sees the keys j <= t with t - j < window or j < sink: the last `window` ones, its
own included, and the first `sink` ones of the document. Each key head has numbers of its own; no windows are all keys.
"""

import itertools
from collections.abc import Sequence as Ints

import torch
from torch import Tensor

from . import checks

PerHead = int | Ints[int] | Tensor | None
"""A number of tokens: one for all key heads, or one for each; None is all tokens."""


def per_head(name: str, given: PerHead, kv_heads: int, least: int) -> tuple[int, ...]:
    """One number per key head; none where nothing is given. Raises ValueError."""
    if given is None:
        return ()
    if isinstance(given, Tensor):
        if given.is_floating_point() or given.ndim > 1:
            raise ValueError(f"{name} is {given.dtype} of shape {list(given.shape)}; allowed: integers [H_kv], or one")
        given = given.tolist()
    numbers = (given,) * kv_heads if isinstance(given, int) else tuple(given)
    if len(numbers) != kv_heads:
        raise ValueError(f"{name} has {len(numbers)} numbers; allowed: {kv_heads}, one per key head, or one for all")
    if min(numbers) < least:
        raise ValueError(f"{name} is {min(numbers)} for a head; allowed: {least} or more tokens")
    return numbers


def check_rows(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises ValueError unless q is [B, T, H, D], k and v [B, T, H_kv, D], H a multiple of H_kv."""
    if q.ndim != 4:
        raise ValueError(f"q has {q.ndim} dimensions; allowed: 4, [B, T, H, D]")
    checks.check_dtypes(q=q, k=k, v=v)
    if k.ndim != 4:
        raise ValueError(f"k has {k.ndim} dimensions; allowed: 4, [B, T, H_kv, D]")
    (B, T, H, D), kv_heads = q.shape, k.shape[2]
    _check_group(H, kv_heads)
    checks.check_shape("k", k, (B, T, kv_heads, D), "q's [B, T, H_kv, D]")
    checks.check_shape("v", v, (B, T, kv_heads, D), "k's [B, T, H_kv, D]")


def check_step(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> None:
    """Raises ValueError unless q is [N, H, D], k and v [N, S, H_kv, D], seen [N, S] or [N, S, H_kv] bool."""
    if q.ndim != 3 or k.ndim != 4:
        raise ValueError(f"q has {q.ndim} and k {k.ndim} dimensions; allowed: [N, H, D] and [N, S, H_kv, D]")
    checks.check_dtypes(q=q, k=k, v=v)
    (N, H, D), (S, kv_heads) = q.shape, k.shape[1:3]
    _check_group(H, kv_heads)
    checks.check_shape("k", k, (N, S, kv_heads, D), "q's [N, S, H_kv, D]")
    checks.check_shape("v", v, (N, S, kv_heads, D), "k's [N, S, H_kv, D]")
    if seen is None:
        return
    if seen.ndim == 3:
        checks.check_shape("seen", seen, (N, S, kv_heads), "k's [N, S, H_kv]")
    else:
        checks.check_shape("seen", seen, (N, S), "k's [N, S]")
    if seen.dtype != torch.bool:
        raise ValueError(f"seen is {seen.dtype}; allowed: torch.bool, True where a key is seen")


def _check_group(H: int, kv_heads: int) -> None:
    if kv_heads == 0 or H == 0 or H % kv_heads:
        raise ValueError(f"q has {H} heads and k has {kv_heads}; allowed: a positive multiple of k's")


def seen_by_head(seen: Tensor, kv_heads: int) -> Tensor:
    """[N, S] or [N, S, H_kv] -> [N, S, H_kv], a view."""
    return seen if seen.ndim == 3 else seen[..., None].expand(*seen.shape, kv_heads)


def visible(t: Tensor, j: Tensor, sink: Ints[int], window: Ints[int]) -> Tensor:
    """Whether queries at positions t [..., T] see keys at j [S]: [..., T, S] where all heads see the same, else with
    heads before the queries, t being [..., H_kv, T] or [T]."""
    t = t[..., None]
    causal = j <= t
    if not window:
        return causal
    if len({*zip(sink, window, strict=True)}) == 1:
        return causal & ((t - j < window[0]) | (j < sink[0]))
    first, last = (torch.tensor(x, device=j.device)[:, None, None] for x in (sink, window))
    return causal & ((t - j < last) | (j < first))


def pairs(group: int, kv_heads: int, sink: Ints[int], window: Ints[int], bounds: Ints[int]) -> int:
    """How many pairs of a query and a key that it sees there are, `group` query heads to a key head, in documents with
    these bounds."""
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    spans = [s + w for s, w in zip(sink, window, strict=True)] if window else [max(lengths, default=0)] * kv_heads
    seen = [(min(span, n), n) for span in spans for n in lengths]
    return group * sum(m * (m + 1) // 2 + (n - m) * m for m, n in seen)
