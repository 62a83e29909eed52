"""Gated scan: the element-wise linear recurrence of HGRN."""

import torch
from torch import Tensor

from ..availability import NATIVE, TRITON, fla_unavailable
from ..backend import choose, register
from ..shared import checks
from ..shared.sequences import Sequences
from .chunked import gated_scan_chunked
from .fla import gated_scan_fla
from .reference import gated_scan_reference
from .step import gated_scan_step_reference

__all__ = ["gated_scan", "gated_scan_step"]

register("gated_scan", "reference", gated_scan_reference)
register("gated_scan", "fla", gated_scan_fla, unavailable=fla_unavailable)
register("gated_scan", "chunked", gated_scan_chunked, auto_on=None)
register("gated_scan", "native", "gated_scan.native:gated_scan_native", **NATIVE)
register("gated_scan", "triton", "gated_scan.triton_scan:gated_scan_triton", **TRITON)

register("gated_scan_step", "reference", gated_scan_step_reference, auto_on=None)
register("gated_scan_step", "native", "gated_scan.native:gated_scan_step_native", **NATIVE)
register("gated_scan_step", "triton", "gated_scan.triton_step:gated_scan_step_triton", **TRITON)


def gated_scan(
    x: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    sequences: Sequences | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """h_t = exp(g_t) h_{t-1} + x_t, each channel by itself.

    The recurrence of HGRN (arXiv 2311.04823), whose input is x_t = (1 - exp g_t) silu(i_t).

    x, g: [B, T, ...], at least one channel dimension. g: natural logarithm of the decay, <= 0, float32 or x's dtype.
    initial_state: [N, ...] float32 (float64 if x is), default 0; N = B sequences.
    cu_seqlens: [N + 1] int offsets of N documents packed along T, then B = 1; a document may be empty.
    sequences: the same, made once for many calls, in the place of cu_seqlens.
    backend: "auto" is the fastest one registered for the device, see `kernels.backend`.

    Returns h [B, T, ...] in x's dtype and, if asked for, the final state like initial_state (an empty document's is its
    initial state), else None. It multiplies element by element only: no matmul FLOPs. Raises ValueError on inputs that
    do not fit (on a GPU the values of g are not looked at: the Triton kernels make NaN of wrong ones),
    BackendUnavailable on a backend that cannot run here.
    """
    if x.ndim < 3:
        raise ValueError(f"x has {x.ndim} dimensions; allowed: 3 or more, [B, T, ...]")
    _check_input_and_gate(x, g, "x's [B, T, ...]")
    sequences = Sequences.given(x, cu_seqlens, sequences)
    state_shape = [len(sequences), *x.shape[2:]]
    if initial_state is not None:
        checks.check_state("initial_state", initial_state, state_shape, "[N, ...]", x.dtype)
    run = choose("gated_scan", backend, x.device)
    if x.numel() == 0:
        state = checks.no_tokens_state(initial_state, state_shape, x)
        return x.clone(), state if output_final_state else None
    checks.check_log_decay(g)
    with torch.autocast(x.device.type, enabled=False):  # the op sets its own precision
        h, state = run(x, g, initial_state=initial_state, sequences=sequences)
    return h, state if output_final_state else None


@torch.no_grad()
def gated_scan_step(x: Tensor, g: Tensor, *, state: Tensor, backend: str = "auto") -> Tensor:
    """One token of `gated_scan` for each of N sequences: updates `state` in place, without autograd.

    x, g: [N, ...]. state: the same shape, contiguous. Dtypes as in `gated_scan`; the range of g is not looked at.
    Returns h [N, ...] in x's dtype. Raises ValueError on inputs that do not fit, BackendUnavailable on a backend that
    cannot run here.
    """
    if x.ndim < 2:
        raise ValueError(f"x has {x.ndim} dimensions; allowed: 2 or more, [N, ...]")
    _check_input_and_gate(x, g, "x's [N, ...]")
    checks.check_written_state(state, list(x.shape), "x's [N, ...]", x.dtype)
    run = choose("gated_scan_step", backend, x.device)
    with torch.autocast(x.device.type, enabled=False):
        return run(x, g, state=state)


def _check_input_and_gate(x: Tensor, g: Tensor, meaning: str) -> None:
    checks.check_dtypes(x=x)
    checks.check_gate("g", g, list(x.shape), meaning, x, "x")
