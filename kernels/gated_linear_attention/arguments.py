"""What every backend of gated linear attention is given: the public functions' arguments, checked."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..shared import checks
from ..shared.sequences import Sequences


class LinearArguments(NamedTuple):
    """Of `gated_linear_attention`, see there. A half-precision g is possible, an absent one is a decay of 1."""

    q: Tensor  # [B, T, H, K]
    k: Tensor
    v: Tensor  # [B, T, H, V]
    g: Tensor | None  # [B, T, H, K] or [B, T, H]
    initial_state: Tensor | None  # [N, H, K, V]
    scale: float
    sequences: Sequences
    chunk_size: int
    recompute: bool

    @classmethod
    def checked(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        *,
        scale: float | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        sequences: Sequences | None,
        chunk_size: int,
        recompute: bool,
    ) -> Self:
        if q.ndim != 4 or v.ndim != 4:
            raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 4, [B, T, H, head_dim]")
        (B, T, H, K), V = q.shape, v.shape[3]
        checks.check_shape("k", k, (B, T, H, K), "q's [B, T, H, K]")
        checks.check_shape("v", v, (B, T, H, V), "q's [B, T, H, ...]")
        _check_heads_and_gate(q, k, v, g, "[B, T, H]")
        checks.check_chunk_size(chunk_size)
        sequences = Sequences.given(q, cu_seqlens, sequences)
        factor = K**-0.5 if scale is None else scale
        x = cls(q, k, v, g, initial_state, factor, sequences, chunk_size, recompute)
        if initial_state is not None:
            checks.check_state("initial_state", initial_state, x.state_shape, "[N, H, K, V]", v.dtype)
        return x

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def state_shape(self) -> tuple[int, ...]:
        """[N, H, K, V]"""
        return len(self.sequences), *self.q.shape[2:], self.v.shape[3]

    def blank(self) -> tuple[Tensor, Tensor]:
        """Results with nothing in them yet."""
        return self.v.new_empty(self.v.shape), self.v.new_empty(
            self.state_shape, dtype=checks.state_dtype(self.v.dtype)
        )

    def without_tokens(self) -> tuple[Tensor, Tensor] | None:
        if self.q.shape[0] * self.q.shape[1]:
            return None
        return self.v.clone(), checks.no_tokens_state(self.initial_state, self.state_shape, self.v)

    def check_values(self) -> None:
        if self.g is not None:
            checks.check_log_decay(self.g)


class LinearStepArguments(NamedTuple):
    """Of `gated_linear_attention_step`, see there."""

    q: Tensor  # [N, H, K]
    k: Tensor
    v: Tensor  # [N, H, V]
    g: Tensor | None  # [N, H, K] or [N, H]
    state: Tensor  # [N, H, K, V], contiguous, to be updated in place
    scale: float

    @classmethod
    def checked(cls, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, *, state: Tensor, scale: float | None) -> Self:
        if q.ndim != 3 or v.ndim != 3:
            raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 3, [N, H, head_dim]")
        (N, H, K), V = q.shape, v.shape[2]
        checks.check_shape("k", k, (N, H, K), "q's [N, H, K]")
        checks.check_shape("v", v, (N, H, V), "q's [N, H, ...]")
        _check_heads_and_gate(q, k, v, g, "[N, H]")
        checks.check_written_state(state, (N, H, K, V), "[N, H, K, V]", v.dtype)
        return cls(q, k, v, g, state, K**-0.5 if scale is None else scale)

    @property
    def device(self) -> torch.device:
        return self.q.device

    def blank(self) -> Tensor:
        """Results with nothing in them yet."""
        return self.v.new_empty(self.v.shape)


def _check_heads_and_gate(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, per_head: str) -> None:
    checks.check_heads(q.shape[-2], v.shape[-2])
    checks.check_dtypes(q=q, k=k, v=v)
    if g is not None and g.ndim == q.ndim:
        checks.check_gate("g", g, q.shape, f"{per_head[:-1]}, K], or {per_head}", v)
    elif g is not None:
        checks.check_gate("g", g, q.shape[:-1], f"{per_head}, or {per_head[:-1]}, K]", v)
