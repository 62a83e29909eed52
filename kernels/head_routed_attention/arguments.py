"""What every backend of head-routed attention is given: the public functions' arguments, checked."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..shared import band, checks
from ..shared.sequences import Sequences


class RoutedArguments(NamedTuple):
    """Of `head_routed_attention`, see there."""

    q: Tensor  # [B, T, H, D]
    k: Tensor  # [B, T, H_kv, D]
    v: Tensor
    gate: Tensor  # [B, T, H], 0 where a head is inactive
    sink: tuple[int, ...]  # of each key head; none without a window
    window: tuple[int, ...]  # none is all keys
    sequences: Sequences

    @classmethod
    def checked(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        *,
        sink: band.PerHead,
        window: band.PerHead,
        cu_seqlens: Tensor | None,
        sequences: Sequences | None,
    ) -> Self:
        band.check_rows(q, k, v)
        checks.check_gate("gate", gate, tuple(q.shape[:3]), "q's [B, T, H]", q, "q")
        kv_heads = k.shape[2]
        windows = band.per_head("window", window, kv_heads, least=1)
        sinks = band.per_head("sink", sink, kv_heads, least=0)
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
    seen: Tensor | None  # [N, S] or [N, S, H_kv] bool

    @classmethod
    def checked(cls, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, *, seen: Tensor | None) -> Self:
        band.check_step(q, k, v, seen)
        checks.check_gate("gate", gate, tuple(q.shape[:2]), "q's [N, H]", q, "q")
        return cls(q, k, v, gate, seen)

    @property
    def device(self) -> torch.device:
        return self.q.device

    def blank(self) -> Tensor:
        """The result with nothing in it yet."""
        return self.q.new_empty(self.q.shape)
