"""What every backend of banded attention is given: the public functions' arguments, checked."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..shared import band
from ..shared.sequences import Sequences


class BandedArguments(NamedTuple):
    """Of `banded_attention`, see there."""

    q: Tensor  # [B, T, H, D]
    k: Tensor  # [B, T, H_kv, D]
    v: Tensor
    sink: tuple[int, ...]  # of each key head; none without a window
    window: tuple[int, ...]  # none is all keys
    sequences: Sequences

    @classmethod
    def checked(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        sink: band.PerHead,
        window: band.PerHead,
        cu_seqlens: Tensor | None,
        sequences: Sequences | None,
    ) -> Self:
        band.check_rows(q, k, v)
        windows = band.per_head("window", window, k.shape[2], least=1)
        sinks = band.per_head("sink", sink, k.shape[2], least=0)
        if windows and not sinks:
            raise ValueError("sink is None with a window; allowed: a number of tokens, 0 for a window alone")
        return cls(q, k, v, sinks if windows else (), windows, Sequences.given(q, cu_seqlens, sequences))

    @property
    def device(self) -> torch.device:
        return self.q.device

    def blank(self) -> Tensor:
        """The result with nothing in it yet."""
        return self.q.new_empty(self.q.shape)

    def without_tokens(self) -> Tensor | None:
        return None if self.q.numel() else self.q.clone()

    def check_values(self) -> None:
        """Any values will do."""


class BandedStepArguments(NamedTuple):
    """Of `banded_attention_step`, see there."""

    q: Tensor  # [N, H, D]
    k: Tensor  # [N, S, H_kv, D], any strides
    v: Tensor
    seen: Tensor | None  # [N, S] or [N, S, H_kv] bool

    @classmethod
    def checked(cls, q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor | None) -> Self:
        band.check_step(q, k, v, seen)
        return cls(q, k, v, seen)

    @property
    def device(self) -> torch.device:
        return self.q.device

    def blank(self) -> Tensor:
        """The result with nothing in it yet."""
        return self.q.new_empty(self.q.shape)
