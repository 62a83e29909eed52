"""One token of the gated scan, for decoding."""

from torch import Tensor

from ..shared.checks import state_dtype


def gated_scan_step_reference(x: Tensor, g: Tensor, *, state: Tensor) -> Tensor:
    """x, g: [N, ...]; updates state [N, ...] in place; returns h [N, ...]."""
    state *= g.to(state_dtype(x.dtype)).exp()
    state += x
    return state.to(x.dtype, copy=True)
