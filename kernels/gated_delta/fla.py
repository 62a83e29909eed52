"""flash-linear-attention's Triton kernels behind the same contract, for comparison on a GPU."""

from typing import Any

import torch
from torch import Tensor

from ..shared.sequences import Sequences


def gated_delta_rule_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None,
    sequences: Sequences,
    chunk_size: int,
    recompute: bool,  # it always rebuilds the states
) -> tuple[Tensor, Tensor]:
    """Same contract as `gated_delta_rule_reference`, within the library's own limits on dtypes and head sizes."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    op: Any = chunk_gated_delta_rule  # its decorators hide the signature
    return op(
        q=q,
        k=k,
        v=v,
        g=torch.zeros_like(beta, dtype=torch.float32) if g is None else g,
        beta=beta,
        scale=scale,
        initial_state=initial_state,
        output_final_state=True,
        cu_seqlens=sequences.cu_seqlens_on(q.device),
        chunk_size=chunk_size,
    )
