"""Gated delta rule: the linear recurrence of DeltaNet and Gated DeltaNet."""

from torch import Tensor

from ..operator import operator
from ..shared.sequences import Sequences
from . import chunked, fla, reference
from .arguments import DeltaArguments
from .chunked import gated_delta_rule_flops
from .step import gated_delta_rule_step

__all__ = ["gated_delta_rule", "gated_delta_rule_flops", "gated_delta_rule_step"]


@operator(
    arguments=DeltaArguments,
    step=gated_delta_rule_step,
    flops=gated_delta_rule_flops,
    reference=reference.run,
    chunked=chunked.run,
    native="native:run",
    triton="triton_rule:run",
    fla=fla.run,
)
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
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
    """S' = exp(g_t) S_{t-1};  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T;  o_t = scale S_t^T q_t.

    The gated delta rule of arXiv 2412.06464; g=None is the delta rule of DeltaNet, arXiv 2406.06484. Keys are used as
    given: normalise them first, the recurrence is stable for beta |k|^2 in [0, 2].

    q, k: [B, T, H, K]. v: [B, T, HV, V], HV a multiple of H; value head j reads with query and key head j // (HV / H).
    g: [B, T, HV] natural logarithm of the decay, <= 0. beta: [B, T, HV] in [0, 2]. g and beta: float32 or v's dtype.
    scale: default K^-0.5. initial_state: [N, HV, K, V] float32 (float64 if v is), default 0; N = B sequences.
    cu_seqlens: [N + 1] int offsets of N documents packed along T, then B = 1; a document may be empty.
    sequences: the same, made once for many calls, in the place of cu_seqlens.
    chunk_size: 16, 32 or 64 tokens worked on at a time; changes speed and memory only.
    recompute: rebuild the chunks' states in the backward pass rather than keep them.
    backend: "auto" is the fastest one registered for the device, see `kernels.backend`.

    Returns o [B, T, HV, V] in v's dtype and, if asked for, the final state like initial_state (an empty document's is
    its initial state), else None. Raises ValueError on inputs that do not fit (on a GPU the values of g and beta are
    not looked at: the Triton kernels make NaN of wrong ones), BackendUnavailable on a backend that cannot run here.
    """
    x = DeltaArguments.checked(
        q,
        k,
        v,
        g,
        beta,
        scale=scale,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        sequences=sequences,
        chunk_size=chunk_size,
        recompute=recompute,
    )
    o, state = gated_delta_rule.run(x, backend)
    return o, state if output_final_state else None
