"""Gated scan: the element-wise linear recurrence of HGRN."""

from torch import Tensor

from ..operator import operator
from ..shared.sequences import Sequences
from . import chunked, fla, reference
from .arguments import ScanArguments
from .step import gated_scan_step

__all__ = ["gated_scan", "gated_scan_flops", "gated_scan_step"]


def gated_scan_flops() -> float:
    """Forward matmul FLOPs per token: none, it multiplies element by element."""
    return 0.0


@operator(
    arguments=ScanArguments,
    step=gated_scan_step,
    flops=gated_scan_flops,
    reference=reference.run,
    chunked=chunked.run,
    native="native:run",
    triton="triton_scan:run",
    fla=fla.run,
)
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
    arguments = ScanArguments.checked(x, g, initial_state=initial_state, cu_seqlens=cu_seqlens, sequences=sequences)
    h, state = gated_scan.run(arguments, backend)
    return h, state if output_final_state else None
