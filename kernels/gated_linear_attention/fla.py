"""flash-linear-attention's Triton kernels behind the same contract, for comparison on a GPU."""

from typing import Any

from torch import Tensor

from .arguments import LinearArguments


def run(x: LinearArguments) -> tuple[Tensor, Tensor]:
    """As the reference, within the library's own limits on dtypes and head sizes.

    Its chunks are of 64 tokens, and it always rebuilds the states. It subtracts running sums of g in float32: behind a
    g of -1e4 and less decays lose their digits, and -inf gives NaN.
    """
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    op: Any = chunk_gla if x.g is not None and x.g.ndim == 4 else chunk_simple_gla
    return op(
        q=x.q,
        k=x.k,
        v=x.v,
        g=x.g,
        scale=x.scale,
        initial_state=x.initial_state,
        output_final_state=True,
        cu_seqlens=x.sequences.cu_seqlens_on(x.device),
    )
