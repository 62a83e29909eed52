"""Where the sequences of a batch lie. Mixers see equal rows or packed documents, and never padding."""

from collections.abc import Sequence as Ints
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """N sequences, dense as [N, T] rows (`packed` False) or end to end in one row [1, sum of lengths].

    lengths: tokens of each sequence in this call. past: tokens of each that its state has already seen.
    """

    lengths: tuple[int, ...]
    past: tuple[int, ...]
    packed: bool
    device: torch.device

    @classmethod
    def dense(cls, n: int, T: int, past: Ints[int] | None, device: torch.device) -> "Sequences":
        return cls((T,) * n, tuple(past or (0,) * n), False, device)

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor, past: Ints[int] | None) -> "Sequences":
        """One sequence per document; cu_seqlens [N + 1] are the documents' bounds, from 0 to T."""
        lengths = cu_seqlens.diff().tolist()
        return cls(tuple(lengths), tuple(past or (0,) * len(lengths)), True, cu_seqlens.device)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def cu_seqlens(self) -> Tensor | None:
        """Bounds of the documents [N + 1] when packed, None when dense: the form that the kernels take."""
        if not self.packed:
            return None
        return torch.tensor((0, *self.lengths), device=self.device).cumsum(0)

    @cached_property
    def positions(self) -> Tensor:
        """Position of every token within its own sequence, past included: [N, T] or [1, sum of lengths]."""
        past = torch.tensor(self.past, device=self.device)
        if not self.packed:
            return past[:, None] + torch.arange(self.lengths[0], device=self.device)
        lengths = torch.tensor(self.lengths, device=self.device)
        starts = lengths.cumsum(0) - lengths
        offset = torch.repeat_interleave(past - starts, lengths)
        return (offset + torch.arange(int(sum(self.lengths)), device=self.device))[None]

    @cached_property
    def single(self) -> bool:
        """Whether every sequence has exactly one token in this call."""
        return all(length == 1 for length in self.lengths)

    @property
    def fresh(self) -> bool:
        """Whether no sequence has a past."""
        return not any(self.past)
