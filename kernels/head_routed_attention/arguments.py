"""What every backend of head-routed attention is given: the public functions' arguments, checked."""

from collections.abc import Sequence as Ints
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..shared import checks
from ..shared.sequences import Sequences

PerHead = int | Ints[int] | Tensor | None
"""A number of tokens: one for all key heads, or one for each."""


class RoutedArguments(NamedTuple):
    """Of `head_routed_attention`, see there."""

    q: Tensor  # [B, T, H, D]
    k: Tensor  # [B, T, H_kv, D]
    v: Tensor
    gate: Tensor  # [B, T, H], 0 where a head is inactive
    sink: tuple[
        int, ...
    ]  # tokens from its document's start that a key head's queries always see; none without a window
    window: tuple[int, ...]  # and the last ones that they see; none is all
    sequences: Sequences

    @classmethod
    def checked(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        *,
        sink: PerHead,
        window: PerHead,
        cu_seqlens: Tensor | None,
        sequences: Sequences | None,
    ) -> Self:
        if q.ndim != 4:
            raise ValueError(f"q has {q.ndim} dimensions; allowed: 4, [B, T, H, D]")
        checks.check_dtypes(q=q, k=k, v=v)
        if k.ndim != 4:
            raise ValueError(f"k has {k.ndim} dimensions; allowed: 4, [B, T, H_kv, D]")
        (B, T, H, D), kv_heads = q.shape, k.shape[2]
        if kv_heads == 0 or H == 0 or H % kv_heads:
            raise ValueError(f"q has {H} heads and k has {kv_heads}; allowed: a positive multiple of k's")
        checks.check_shape("k", k, (B, T, kv_heads, D), "q's [B, T, H_kv, D]")
        checks.check_shape("v", v, (B, T, kv_heads, D), "k's [B, T, H_kv, D]")
        checks.check_gate("gate", gate, (B, T, H), "q's [B, T, H]", q, "q")
        windows = _per_head("window", window, kv_heads, least=1)
        sinks = _per_head("sink", sink, kv_heads, least=0)
        if sinks and not windows:
            raise ValueError("sink is given without a window; allowed: both, or none, which is all keys")
        sinks = sinks or (0,) * len(windows)
        return cls(q, k, v, gate, sinks, windows, Sequences.given(q, cu_seqlens, sequences))

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.q.shape[2] // self.k.shape[2]

    def blank(self) -> Tensor:
        """The result with nothing in it yet."""
        return self.q.new_empty(self.q.shape)

    def without_tokens(self) -> Tensor | None:
        return None if self.q.numel() else self.q.clone()

    def check_values(self) -> None:
        """Any gate will do."""


class RoutedStepArguments(NamedTuple):
    """Of `head_routed_attention_step`, see there."""

    q: Tensor  # [N, H, D]
    k: Tensor  # [N, S, H_kv, D], any strides
    v: Tensor
    gate: Tensor  # [N, H]
    seen: Tensor | None  # [N, S] bool

    @classmethod
    def checked(cls, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, *, seen: Tensor | None) -> Self:
        if q.ndim != 3 or k.ndim != 4:
            raise ValueError(f"q has {q.ndim} and k {k.ndim} dimensions; allowed: [N, H, D] and [N, S, H_kv, D]")
        checks.check_dtypes(q=q, k=k, v=v)
        (N, H, D), (S, kv_heads) = q.shape, k.shape[1:3]
        if kv_heads == 0 or H == 0 or H % kv_heads:
            raise ValueError(f"q has {H} heads and k has {kv_heads}; allowed: a positive multiple of k's")
        checks.check_shape("k", k, (N, S, kv_heads, D), "q's [N, S, H_kv, D]")
        checks.check_shape("v", v, (N, S, kv_heads, D), "k's [N, S, H_kv, D]")
        checks.check_gate("gate", gate, (N, H), "q's [N, H]", q, "q")
        if seen is not None:
            checks.check_shape("seen", seen, (N, S), "k's [N, S]")
            if seen.dtype != torch.bool:
                raise ValueError(f"seen is {seen.dtype}; allowed: torch.bool, True where a key is seen")
        return cls(q, k, v, gate, seen)

    @property
    def device(self) -> torch.device:
        return self.q.device

    def blank(self) -> Tensor:
        """The result with nothing in it yet."""
        return self.q.new_empty(self.q.shape)


def _per_head(name: str, given: PerHead, kv_heads: int, least: int) -> tuple[int, ...]:
    """One number per key head; none where nothing is given."""
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
