"""Gated delta rule: the linear recurrence of DeltaNet and Gated DeltaNet."""

import torch
from torch import Tensor

from ..availability import NATIVE, TRITON, fla_unavailable
from ..backend import choose, register
from ..shared import checks
from ..shared.sequences import Sequences
from .chunked import gated_delta_rule_chunked, gated_delta_rule_flops
from .fla import gated_delta_rule_fla
from .reference import gated_delta_rule_reference
from .step import gated_delta_rule_step_reference

__all__ = ["gated_delta_rule", "gated_delta_rule_flops", "gated_delta_rule_step"]

register("gated_delta_rule", "reference", gated_delta_rule_reference)
register("gated_delta_rule", "fla", gated_delta_rule_fla, unavailable=fla_unavailable)
register("gated_delta_rule", "chunked", gated_delta_rule_chunked, auto_on=None)
register("gated_delta_rule", "native", "gated_delta.native:gated_delta_rule_native", **NATIVE)
register("gated_delta_rule", "triton", "gated_delta.triton_rule:gated_delta_rule_triton", **TRITON)

register("gated_delta_rule_step", "reference", gated_delta_rule_step_reference, auto_on=None)
register("gated_delta_rule_step", "native", "gated_delta.native:gated_delta_rule_step_native", **NATIVE)
register("gated_delta_rule_step", "triton", "gated_delta.triton_step:gated_delta_rule_step_triton", **TRITON)


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
    sequences = _check(q, k, v, g, beta, initial_state, cu_seqlens, sequences, chunk_size)
    run = choose("gated_delta_rule", backend, q.device)
    if q.shape[0] * q.shape[1] == 0:
        state = checks.no_tokens_state(initial_state, [len(sequences), v.shape[2], q.shape[3], v.shape[3]], v)
        return v.clone(), state if output_final_state else None
    if g is not None:
        checks.check_log_decay(g)
    checks.check_beta(beta)
    with torch.autocast(q.device.type, enabled=False):  # the op sets its own precision
        o, state = run(
            q,
            k,
            v,
            g,
            beta,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            initial_state=initial_state,
            sequences=sequences,
            chunk_size=chunk_size,
            recompute=recompute,
        )
    return o, state if output_final_state else None


@torch.no_grad()
def gated_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of `gated_delta_rule` for each of N sequences: updates `state` in place, without autograd.

    q, k: [N, H, K]. v: [N, HV, V]. g: [N, HV] or None. beta: [N, HV]. state: [N, HV, K, V], contiguous. Dtypes as in
    `gated_delta_rule`; the ranges of g and beta are not looked at. Returns o [N, HV, V] in v's dtype. Raises ValueError
    on inputs that do not fit, BackendUnavailable on a backend that cannot run here.
    """
    if q.ndim != 3 or v.ndim != 3:
        raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 3, [N, heads, head_dim]")
    (N, H, K), (HV, V) = q.shape, v.shape[1:]
    checks.check_shape("k", k, [N, H, K], "q's [N, H, K]")
    checks.check_shape("v", v, [N, HV, V], "q's [N, ...]")
    _check_heads_and_gates(q, k, v, g, beta, [N, HV], "[N, HV]")
    checks.check_written_state(state, [N, HV, K, V], "[N, HV, K, V]", v.dtype)
    run = choose("gated_delta_rule_step", backend, q.device)
    with torch.autocast(q.device.type, enabled=False):
        return run(q, k, v, g, beta, state=state, scale=K**-0.5 if scale is None else scale)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    sequences: Sequences | None,
    chunk_size: int,
) -> Sequences:
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 4, [B, T, heads, head_dim]")
    (B, T, H, K), (HV, V) = q.shape, v.shape[2:]
    checks.check_shape("k", k, [B, T, H, K], "q's [B, T, H, K]")
    checks.check_shape("v", v, [B, T, HV, V], "q's [B, T, ...]")
    _check_heads_and_gates(q, k, v, g, beta, [B, T, HV], "[B, T, HV]")
    checks.check_chunk_size(chunk_size)
    sequences = Sequences.given(q, cu_seqlens, sequences)
    if initial_state is not None:
        checks.check_state("initial_state", initial_state, [len(sequences), HV, K, V], "[N, HV, K, V]", v.dtype)
    return sequences


def _check_heads_and_gates(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, shape: list[int], meaning: str
) -> None:
    checks.check_heads(q.shape[-2], v.shape[-2])
    checks.check_dtypes(q=q, k=k, v=v)
    if g is not None:
        checks.check_gate("g", g, shape, meaning, v)
    checks.check_gate("beta", beta, shape, meaning, v)
