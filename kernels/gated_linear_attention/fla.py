"""flash-linear-attention's Triton kernels behind the same contract, for comparison on a GPU."""

from typing import Any

from torch import Tensor

from ..shared.sequences import Sequences


def gated_linear_attention_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None,
    sequences: Sequences,
    chunk_size: int,  # the library takes 64
    recompute: bool,  # it always rebuilds the states
) -> tuple[Tensor, Tensor]:
    """Same contract as `gated_linear_attention_reference`, within the library's own limits on dtypes and head sizes."""
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    op: Any = chunk_gla if g is not None and g.ndim == 4 else chunk_simple_gla
    return op(
        q=q,
        k=k,
        v=v,
        g=g,
        scale=scale,
        initial_state=initial_state,
        output_final_state=True,
        cu_seqlens=sequences.cu_seqlens_on(q.device),
    )
