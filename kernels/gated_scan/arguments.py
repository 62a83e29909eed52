"""What every backend of the gated scan is given: the public functions' arguments, checked."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..shared import checks
from ..shared.sequences import Sequences


class ScanArguments(NamedTuple):
    """Of `gated_scan`, see there. A half-precision g is possible."""

    x: Tensor  # [B, T, ...]
    g: Tensor
    initial_state: Tensor | None  # [N, ...]
    sequences: Sequences

    @classmethod
    def checked(
        cls,
        x: Tensor,
        g: Tensor,
        *,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        sequences: Sequences | None,
    ) -> Self:
        if x.ndim < 3:
            raise ValueError(f"x has {x.ndim} dimensions; allowed: 3 or more, [B, T, ...]")
        _check_input_and_gate(x, g, "x's [B, T, ...]")
        arguments = cls(x, g, initial_state, Sequences.given(x, cu_seqlens, sequences))
        if initial_state is not None:
            checks.check_state("initial_state", initial_state, arguments.state_shape, "[N, ...]", x.dtype)
        return arguments

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def state_shape(self) -> tuple[int, ...]:
        """[N, ...]"""
        return len(self.sequences), *self.x.shape[2:]

    def blank(self) -> tuple[Tensor, Tensor]:
        """Results with nothing in them yet."""
        return self.x.new_empty(self.x.shape), self.x.new_empty(
            self.state_shape, dtype=checks.state_dtype(self.x.dtype)
        )

    def without_tokens(self) -> tuple[Tensor, Tensor] | None:
        if self.x.numel():
            return None
        return self.x.clone(), checks.no_tokens_state(self.initial_state, self.state_shape, self.x)

    def check_values(self) -> None:
        checks.check_log_decay(self.g)


class ScanStepArguments(NamedTuple):
    """Of `gated_scan_step`, see there."""

    x: Tensor  # [N, ...]
    g: Tensor
    state: Tensor  # [N, ...], contiguous, to be updated in place

    @classmethod
    def checked(cls, x: Tensor, g: Tensor, *, state: Tensor) -> Self:
        if x.ndim < 2:
            raise ValueError(f"x has {x.ndim} dimensions; allowed: 2 or more, [N, ...]")
        _check_input_and_gate(x, g, "x's [N, ...]")
        checks.check_written_state(state, x.shape, "x's [N, ...]", x.dtype)
        return cls(x, g, state)

    @property
    def device(self) -> torch.device:
        return self.x.device

    def blank(self) -> Tensor:
        """Results with nothing in them yet."""
        return self.x.new_empty(self.x.shape)


def _check_input_and_gate(x: Tensor, g: Tensor, meaning: str) -> None:
    checks.check_dtypes(x=x)
    checks.check_gate("g", g, x.shape, meaning, x, "x")
