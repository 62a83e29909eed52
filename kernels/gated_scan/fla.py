"""flash-linear-attention's Triton kernel behind the same contract, for comparison on a GPU."""

from typing import Any

from torch import Tensor

from .arguments import ScanArguments


def run(arguments: ScanArguments) -> tuple[Tensor, Tensor]:
    """As the reference, within the library's own limits on dtypes."""
    from fla.ops.hgrn import fused_recurrent_hgrn

    x, g, initial_state, sequences = arguments
    op: Any = fused_recurrent_hgrn  # its decorators hide the signature
    h, state = op(
        x=x.flatten(2).float(),  # it returns the final state in x's dtype
        g=g.flatten(2),
        initial_state=None if initial_state is None else initial_state.flatten(1),
        output_final_state=True,
        cu_seqlens=sequences.cu_seqlens_on(x.device),
    )
    return h.view_as(x).to(x.dtype), state.view(-1, *x.shape[2:])
