"""flash-linear-attention's Triton kernels behind the same contract, for comparison on a GPU."""

from typing import Any

import torch
from torch import Tensor

from .arguments import DeltaArguments


def run(x: DeltaArguments) -> tuple[Tensor, Tensor]:
    """As the reference, within the library's own limits on dtypes and head sizes; it always rebuilds the states.

    It subtracts running sums of g in float32: behind a g of -1e4 and less decays lose their digits, and -inf gives NaN.
    """
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    op: Any = chunk_gated_delta_rule  # its decorators hide the signature
    return op(
        q=x.q,
        k=x.k,
        v=x.v,
        g=torch.zeros_like(x.beta, dtype=torch.float32) if x.g is None else x.g,
        beta=x.beta,
        scale=x.scale,
        initial_state=x.initial_state,
        output_final_state=True,
        cu_seqlens=x.sequences.cu_seqlens_on(x.device),
        chunk_size=x.chunk_size,
    )
