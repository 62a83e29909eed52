"""Where the sequences of a batch begin and end: B rows of equal length, or documents packed along T by cu_seqlens.

Every operator sees N sequences and never asks which of the two it was given. `Chunks` cuts them into chunks of C tokens
in step-major order: chunk 0 of every sequence, then chunk 1 of every sequence that has one, and so on, longest sequence
first. A recurrence over chunks then touches contiguous rows only.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.utils.weak import WeakTensorKeyDictionary

from .made_once import made_once

T = TypeVar("T")

HOST = torch.device("cpu")
"""Where tables are made: whatever torch.device() is around the first call that needs one, it serves all."""

_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # cu_seqlens -> its version and Sequences


@dataclass(frozen=True)
class Sequences:
    """N sequences inside a [B, T, ...] tensor; `bounds` are the documents' offsets, None for B rows of length T.

    It lives on the host and is made once for a batch, by whoever knows it first: the loader, the model, or an operator
    that was given cu_seqlens. What layers derive from it, tables on a device included, they make once too: see `once`.
    """

    batch: int
    tokens: int
    bounds: tuple[int, ...] | None = None

    @classmethod
    def of(cls, x: Tensor, cu_seqlens: Tensor | None) -> "Sequences":
        """Layout of x [B, T, ...]. cu_seqlens is copied to the host once per tensor, however many layers ask.

        Raises ValueError if cu_seqlens does not describe x.
        """
        batch, tokens = x.shape[:2]
        if cu_seqlens is None:
            return rows(batch, tokens)
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
            found = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
            raise ValueError(
                f"cu_seqlens is {found}; allowed: a tensor of int32 or int64, e.g. torch.tensor([0, 5, 9])"
            )
        if batch != 1:
            raise ValueError(
                f"cu_seqlens packs documents along T, so B must be 1, not {batch}; reshape to [1, B*T, ...]"
            )
        known = _host_copy(cu_seqlens)
        bounds = known.bounds or ()
        if cu_seqlens.ndim != 1 or len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens or _decreases(bounds):
            raise ValueError(
                f"cu_seqlens is {_abridged(bounds)} of shape {list(cu_seqlens.shape)}; "
                f"allowed: offsets that start at 0, never decrease and end at T={tokens}"
            )
        return known

    @classmethod
    def documents(cls, lengths: Iterable[int]) -> "Sequences":
        """Documents of these lengths, packed along T."""
        bounds = tuple(itertools.accumulate(lengths, initial=0))
        return Sequences(1, bounds[-1], bounds)

    @classmethod
    def given(cls, x: Tensor, cu_seqlens: Tensor | None, sequences: "Sequences | None") -> "Sequences":
        """What an operator was told of x [B, T, ...]: `sequences`, made before, or cu_seqlens. Raises ValueError."""
        if sequences is None:
            return cls.of(x, cu_seqlens)
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens and sequences are both given; allowed: one of them, they say the same")
        sequences.check(x)
        return sequences

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless x is [B, T, ...] of these sequences."""
        if tuple(x.shape[:2]) != (self.batch, self.tokens):
            raise ValueError(
                f"sequences describe [{self.batch}, {self.tokens}, ...], but the tensor is {list(x.shape)}; "
                "pass the sequences that it was made with"
            )

    @made_once
    def lengths(self) -> tuple[int, ...]:
        if self.bounds is None:
            return (self.tokens,) * self.batch
        return tuple(b - a for a, b in itertools.pairwise(self.bounds))

    def __len__(self) -> int:
        return self.batch if self.bounds is None else len(self.bounds) - 1

    @property
    def packed(self) -> bool:
        """Whether the sequences lie end to end in one row."""
        return self.bounds is not None

    @made_once
    def equal(self) -> bool:
        """All sequences have one length, so [B, T, ...] views as [N, length, ...]."""
        return self.bounds is None or len(set(self.lengths)) <= 1

    @made_once
    def longest(self) -> int:
        return max(self.lengths, default=0) if self.packed else self.tokens

    @property
    def starts(self) -> tuple[int, ...]:
        """First token of each sequence in the flattened [B * T], and B * T."""
        if self.bounds is not None:
            return self.bounds
        return tuple(range(0, (self.batch + 1) * self.tokens, self.tokens)) if self.tokens else (0,) * (self.batch + 1)

    def in_chunk(self, size: int) -> tuple[int, ...]:
        """Tokens that each sequence's chunk of `size` has already: for a memory the chunk is part of the function.

        None here, where the sequences begin with these tokens.
        """
        return (0,) * len(self)

    def once(self, make: Callable[..., T], *arguments: Any) -> T:
        """make(self, *arguments), made at the first call. What it makes must not hold on to these sequences."""
        if tracing():
            return make(self, *arguments)
        made = self.__dict__.setdefault("_made", {})
        key = (make, *arguments)
        if key not in made:
            with torch.inference_mode(False):  # else tensors made in an evaluation could serve in no training step
                made[key] = make(self, *arguments)
        return made[key]

    def cu_seqlens_on(self, device: torch.device) -> Tensor | None:
        """`bounds` as the form that other libraries' kernels take; None for rows."""
        return None if self.bounds is None else self.once(_cu_seqlens, device)

    def chunks(self, chunk_size: int, device: torch.device) -> "Chunks":
        """Cut into chunks of min(chunk_size, the power of two that holds the longest sequence)."""
        return self.once(_chunks, min(chunk_size, 1 << max(0, self.longest - 1).bit_length()), device)


def rows(batch: int, tokens: int) -> Sequences:
    """B rows of T tokens: one value per shape, so that tables outlive a training step."""
    return Sequences(batch, tokens) if tracing() else _rows(batch, tokens)


@lru_cache(maxsize=64)
def _rows(batch: int, tokens: int) -> Sequences:
    return Sequences(batch, tokens)


def tracing() -> bool:
    """Whether tensors made now are no real ones, by torch.export or torch.compile: none of them may be remembered."""
    return torch.compiler.is_compiling() or detect_fake_mode() is not None


@dataclass(frozen=True)
class Chunks:
    """Step-major chunks of `size` tokens; `active[j]` sequences have a chunk j.

    For sequences of unequal length `order` lists them longest first, `token[r]` holds the token positions of chunk r
    and `real[r]` is False behind the end of a document: then `slot` are the places of real tokens in the flattened
    chunks, `filled[r]` of them before chunk r. Equal lengths need none of these: chunking is a transpose.
    """

    n: int  # sequences
    length: int  # of each, where all have one length
    size: int
    active: tuple[int, ...]
    order: Tensor | None = None
    token: Tensor | None = None
    real: Tensor | None = None
    slot: Tensor | None = None
    filled: tuple[int, ...] = ()

    @made_once
    def first_row(self) -> tuple[int, ...]:
        """first_row[j]: number of chunks before step j."""
        return tuple(itertools.accumulate(self.active, initial=0))

    def gather(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Steps [start, stop) of x [B, T, H, ...] as [rows, H, C, ...], a view if possible; 0 behind a sequence."""
        if self.token is None or self.real is None:
            n, length = self.n, self.length
            part = x.reshape(n, length, *x.shape[2:])[:, start * self.size : stop * self.size]
            missing = (stop - start) * self.size - part.shape[1]
            if missing:
                part = F.pad(part, (0, 0) * (x.ndim - 2) + (0, missing))
            return part.unflatten(1, (stop - start, self.size)).transpose(0, 1).transpose(2, 3).flatten(0, 1)
        rows = slice(self.first_row[start], self.first_row[stop])
        picked = x[0].index_select(0, self.token[rows].flatten()).unflatten(0, (-1, self.size))
        return picked.mul_(self.real[rows].view(*picked.shape[:2], *(1,) * (x.ndim - 2))).transpose(1, 2)

    def scatter(self, chunks: Tensor, out: Tensor, start: int, stop: int) -> None:
        """Inverse of `gather`: writes chunks [rows, H, C, ...] to their tokens in out [B, T, H, ...]."""
        if self.token is None or self.slot is None:
            n, length = self.n, self.length
            part = out.view(n, length, *out.shape[2:])[:, start * self.size : stop * self.size]
            steps = chunks.unflatten(0, (stop - start, n)).transpose(0, 1).transpose(2, 3)  # [N, S, C, H, ...]
            if part.shape[1] == (stop - start) * self.size:
                part.unflatten(1, (stop - start, self.size)).copy_(steps)
            else:
                part.copy_(steps.flatten(1, 2)[:, : part.shape[1]])
            return
        first = self.first_row[start]
        slot = self.slot[self.filled[first] : self.filled[self.first_row[stop]]]
        real = chunks.transpose(1, 2).flatten(0, 1).index_select(0, slot - first * self.size)
        out[0].index_copy_(0, self.token.flatten().index_select(0, slot), real.to(out.dtype))


def _cu_seqlens(sequences: Sequences, device: torch.device) -> Tensor:
    return torch.tensor(sequences.bounds, device=device)


def _chunks(sequences: Sequences, size: int, device: torch.device) -> Chunks:
    lengths, n = sequences.lengths, len(sequences)
    n_steps = -(-sequences.longest // size)
    if sequences.equal:
        return Chunks(n, sequences.longest, size, (n,) * n_steps)
    order = sorted(range(n), key=lambda i: -lengths[i])
    n_chunks = [-(-lengths[i] // size) for i in order]
    active = tuple(sum(count > j for count in n_chunks) for j in range(n_steps))
    begin = torch.tensor([sequences.starts[i] for i in order], device=HOST)
    end = torch.tensor([sequences.starts[i + 1] for i in order], device=HOST)
    step = torch.arange(n_steps, device=HOST).repeat_interleave(torch.tensor(active, device=HOST))  # [rows]
    member = torch.cat([torch.arange(count, device=HOST) for count in active])
    token = (begin[member] + step * size)[:, None] + torch.arange(size, device=HOST)
    real = token < end[member, None]
    slot = real.flatten().nonzero().squeeze(1)
    filled = tuple(itertools.accumulate(real.sum(1).tolist(), initial=0))
    rows = torch.tensor(order, device=device)
    return Chunks(n, 0, size, active, rows, token.where(real, 0).to(device), real.to(device), slot.to(device), filled)


def _host_copy(cu_seqlens: Tensor) -> Sequences:
    """Unchecked: what `cu_seqlens` says."""
    if cu_seqlens.is_inference():  # carries no version counter, so a remembered copy could go stale
        return _packed(cu_seqlens)
    version, known = _known.get(cu_seqlens) or (None, None)
    if known is None or version != cu_seqlens._version:
        known = _packed(cu_seqlens)
        _known[cu_seqlens] = (cu_seqlens._version, known)
    return known


def _packed(cu_seqlens: Tensor) -> Sequences:
    bounds = tuple(cu_seqlens.flatten().tolist())
    return Sequences(1, bounds[-1] if bounds else 0, bounds)


def _decreases(bounds: tuple[int, ...]) -> bool:
    return any(b < a for a, b in itertools.pairwise(bounds))


def _abridged(bounds: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, bounds[:8]))
    return f"[{shown}, ... {bounds[-1]}]" if len(bounds) > 8 else f"[{shown}]"
