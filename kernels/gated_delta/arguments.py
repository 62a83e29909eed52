"""What every backend of the gated delta rule is given: the public functions' arguments, checked."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..shared import checks
from ..shared.sequences import Sequences


class DeltaArguments(NamedTuple):
    """Of `gated_delta_rule`, see there. Half-precision g and beta are possible, an absent g is a decay of 1."""

    q: Tensor  # [B, T, H, K]
    k: Tensor
    v: Tensor  # [B, T, HV, V]
    g: Tensor | None  # [B, T, HV]
    beta: Tensor
    initial_state: Tensor | None  # [N, HV, K, V]
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
        beta: Tensor,
        *,
        scale: float | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        sequences: Sequences | None,
        chunk_size: int,
        recompute: bool,
    ) -> Self:
        if q.ndim != 4 or v.ndim != 4:
            raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 4, [B, T, heads, head_dim]")
        (B, T, H, K), (HV, V) = q.shape, v.shape[2:]
        checks.check_shape("k", k, (B, T, H, K), "q's [B, T, H, K]")
        checks.check_shape("v", v, (B, T, HV, V), "q's [B, T, ...]")
        _check_heads_and_gates(q, k, v, g, beta, (B, T, HV), "[B, T, HV]")
        checks.check_chunk_size(chunk_size)
        sequences = Sequences.given(q, cu_seqlens, sequences)
        factor = K**-0.5 if scale is None else scale
        x = cls(q, k, v, g, beta, initial_state, factor, sequences, chunk_size, recompute)
        if initial_state is not None:
            checks.check_state("initial_state", initial_state, x.state_shape, "[N, HV, K, V]", v.dtype)
        return x

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def state_shape(self) -> tuple[int, ...]:
        """[N, HV, K, V]"""
        return len(self.sequences), self.v.shape[2], self.q.shape[3], self.v.shape[3]

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
        checks.check_beta(self.beta)


class DeltaStepArguments(NamedTuple):
    """Of `gated_delta_rule_step`, see there."""

    q: Tensor  # [N, H, K]
    k: Tensor
    v: Tensor  # [N, HV, V]
    g: Tensor | None  # [N, HV]
    beta: Tensor
    state: Tensor  # [N, HV, K, V], contiguous, to be updated in place
    scale: float

    @classmethod
    def checked(
        cls, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, *, state: Tensor, scale: float | None
    ) -> Self:
        if q.ndim != 3 or v.ndim != 3:
            raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 3, [N, heads, head_dim]")
        (N, H, K), (HV, V) = q.shape, v.shape[1:]
        checks.check_shape("k", k, (N, H, K), "q's [N, H, K]")
        checks.check_shape("v", v, (N, HV, V), "q's [N, ...]")
        _check_heads_and_gates(q, k, v, g, beta, (N, HV), "[N, HV]")
        checks.check_written_state(state, (N, HV, K, V), "[N, HV, K, V]", v.dtype)
        return cls(q, k, v, g, beta, state, K**-0.5 if scale is None else scale)

    @property
    def device(self) -> torch.device:
        return self.q.device

    def blank(self) -> Tensor:
        """Results with nothing in them yet."""
        return self.v.new_empty(self.v.shape)


def _check_heads_and_gates(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, shape: tuple[int, ...], meaning: str
) -> None:
    checks.check_heads(q.shape[-2], v.shape[-2])
    checks.check_dtypes(q=q, k=k, v=v)
    if g is not None:
        checks.check_gate("g", g, shape, meaning, v)
    checks.check_gate("beta", beta, shape, meaning, v)
