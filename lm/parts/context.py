"""Sequences in their context: what of each came before the tokens of this call. Mixers never see padding."""

from collections.abc import Sequence as Ints
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...kernels.shared.made_once import made_once
from ...kernels.shared.sequences import HOST, Sequences, tracing


@dataclass(frozen=True)
class Context(Sequences):
    """N sequences, dense as [N, T] rows or packed end to end in one row [1, sum of lengths], each continuing its past.

    past: tokens of each that its state has already seen. device: where tensors of positions are wanted.
    """

    past: tuple[int, ...] = ()
    device: torch.device = HOST

    @classmethod
    def dense(cls, n: int, T: int, past: Ints[int] | None, device: torch.device) -> "Context":
        """n rows of T tokens."""
        if (past is None or not any(past)) and not tracing():
            return _fresh_rows(n, T, device)
        return cls(n, T, None, tuple(past or (0,) * n), device)

    @classmethod
    def documents_after(cls, lengths: Ints[int], past: Ints[int] | None, device: torch.device) -> "Context":
        """Documents of these lengths, packed."""
        return cls.of_sequences(Sequences.documents(lengths), past, device)

    @classmethod
    def of_sequences(cls, sequences: Sequences, past: Ints[int] | None, device: torch.device) -> "Context":
        """The sequences as a loader or an operator has them, continued."""
        if not sequences.packed:
            return cls.dense(sequences.batch, sequences.tokens, past, device)
        return cls(1, sequences.tokens, sequences.bounds, tuple(past or (0,) * len(sequences)), device)

    @property
    def cu_seqlens(self) -> Tensor | None:
        """Bounds of the documents [N + 1] when packed, None when dense."""
        return self.cu_seqlens_on(self.device)

    @made_once
    def positions(self) -> Tensor:
        """Position of every token within its own sequence, past included: [N, T], [1, sum of lengths] when packed, or
        [1, T] where all rows are at the same one."""
        with torch.inference_mode(False):
            if not self.packed:
                past = torch.tensor(self.past if self.same_past is None else self.past[:1], device=self.device)
                return past[:, None] + torch.arange(self.tokens, device=self.device)
            offset = [before - start for before, start in zip(self.past, self.starts, strict=False)]
            repeats = torch.tensor(self.lengths, device=HOST)
            own = torch.tensor(offset, device=HOST).repeat_interleave(repeats) + torch.arange(self.tokens, device=HOST)
            return own[None].to(self.device)

    @made_once
    def same_past(self) -> int | None:
        """The past of all rows where it is the same, None where it is not, or sequences are packed."""
        return self.past[0] if not self.packed and len(set(self.past)) == 1 else None

    @made_once
    def single(self) -> bool:
        """Whether every sequence has exactly one token in this call."""
        return self.longest == 1 and self.equal

    @made_once
    def fresh(self) -> bool:
        """Whether no sequence has a past."""
        return not any(self.past)

    def in_chunk(self, size: int) -> tuple[int, ...]:
        return tuple(past % size for past in self.past)


@lru_cache(maxsize=16)
def _fresh_rows(n: int, T: int, device: torch.device) -> Context:
    """One value per shape: what is derived from it outlives a step."""
    return Context(n, T, None, (0,) * n, device)
