"""Gated linear attention: the linear recurrence of GLA, HGRN-2, RetNet and plain linear attention."""

from torch import Tensor

from ..operator import operator
from ..shared.sequences import Sequences
from . import chunked, fla, reference
from .arguments import LinearArguments
from .chunked import gated_linear_attention_flops
from .step import gated_linear_attention_step

__all__ = ["gated_linear_attention", "gated_linear_attention_flops", "gated_linear_attention_step"]


@operator(
    arguments=LinearArguments,
    step=gated_linear_attention_step,
    flops=gated_linear_attention_flops,
    reference=reference.run,
    chunked=chunked.run,
    native="native:run",
    triton="triton_rule:run",
    fla=fla.run,
)
def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    sequences: Sequences | None = None,
    chunk_size: int = 64,
    recompute: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """S_t = diag(exp g_t) S_{t-1} + k_t v_t^T;  o_t = scale S_t^T q_t.

    One decay per key channel is GLA (arXiv 2312.06635) and HGRN-2 (arXiv 2404.07904, with k = 1 - exp g); one per head
    is RetNet (arXiv 2307.08621); g=None, no decay, is linear attention.

    q, k: [B, T, H, K]. v: [B, T, H, V]. g: natural logarithm of the decay, <= 0, [B, T, H, K] or [B, T, H], float32 or
    v's dtype. scale: default K^-0.5. initial_state: [N, H, K, V] float32 (float64 if v is), default 0; N = B sequences.
    cu_seqlens: [N + 1] int offsets of N documents packed along T, then B = 1; a document may be empty.
    sequences: the same, made once for many calls, in the place of cu_seqlens.
    chunk_size: 16, 32 or 64 tokens worked on at a time; changes speed and memory only.
    recompute: rebuild the chunks' states in the backward pass rather than keep them.
    backend: "auto" is the fastest one registered for the device, see `kernels.backend`.

    Returns o [B, T, H, V] in v's dtype and, if asked for, the final state like initial_state (an empty document's is
    its initial state), else None. Raises ValueError on inputs that do not fit (on a GPU the values of g are not
    looked at: the Triton kernels make NaN of wrong ones), BackendUnavailable on a backend that cannot run here.
    """
    x = LinearArguments.checked(
        q,
        k,
        v,
        g,
        scale=scale,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        sequences=sequences,
        chunk_size=chunk_size,
        recompute=recompute,
    )
    o, state = gated_linear_attention.run(x, backend)
    return o, state if output_final_state else None
