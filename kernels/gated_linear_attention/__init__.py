"""Gated linear attention: the linear recurrence of GLA, HGRN-2, RetNet and plain linear attention."""

import torch
from torch import Tensor

from ..availability import NATIVE, TRITON, fla_unavailable
from ..backend import choose, register
from ..shared import checks
from ..shared.sequences import Sequences
from .chunked import gated_linear_attention_chunked, gated_linear_attention_flops
from .fla import gated_linear_attention_fla
from .reference import gated_linear_attention_reference
from .step import gated_linear_attention_step_reference

__all__ = ["gated_linear_attention", "gated_linear_attention_flops", "gated_linear_attention_step"]

_FOLDER = "gated_linear_attention"

register("gated_linear_attention", "reference", gated_linear_attention_reference)
register("gated_linear_attention", "fla", gated_linear_attention_fla, unavailable=fla_unavailable)
register("gated_linear_attention", "chunked", gated_linear_attention_chunked, auto_on=None)
register("gated_linear_attention", "native", f"{_FOLDER}.native:gated_linear_attention_native", **NATIVE)
register("gated_linear_attention", "triton", f"{_FOLDER}.triton_rule:gated_linear_attention_triton", **TRITON)

register("gated_linear_attention_step", "reference", gated_linear_attention_step_reference, auto_on=None)
register("gated_linear_attention_step", "native", f"{_FOLDER}.native:gated_linear_attention_step_native", **NATIVE)
register(
    "gated_linear_attention_step",
    "triton",
    f"{_FOLDER}.triton_step:gated_linear_attention_step_triton",
    **TRITON,
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
    sequences = _check(q, k, v, g, initial_state, cu_seqlens, sequences, chunk_size)
    run = choose("gated_linear_attention", backend, q.device)
    if q.shape[0] * q.shape[1] == 0:
        state = checks.no_tokens_state(initial_state, [len(sequences), *k.shape[2:], v.shape[3]], v)
        return v.clone(), state if output_final_state else None
    if g is not None:
        checks.check_log_decay(g)
    with torch.autocast(q.device.type, enabled=False):  # the op sets its own precision
        o, state = run(
            q,
            k,
            v,
            g,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            initial_state=initial_state,
            sequences=sequences,
            chunk_size=chunk_size,
            recompute=recompute,
        )
    return o, state if output_final_state else None


@torch.no_grad()
def gated_linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of `gated_linear_attention` for each of N sequences: updates `state` in place, without autograd.

    q, k: [N, H, K]. v: [N, H, V]. g: [N, H, K], [N, H] or None. state: [N, H, K, V], contiguous. Dtypes as in
    `gated_linear_attention`; the range of g is not looked at. Returns o [N, H, V] in v's dtype. Raises ValueError on
    inputs that do not fit, BackendUnavailable on a backend that cannot run here.
    """
    if q.ndim != 3 or v.ndim != 3:
        raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 3, [N, H, head_dim]")
    (N, H, K), V = q.shape, v.shape[2]
    checks.check_shape("k", k, [N, H, K], "q's [N, H, K]")
    checks.check_shape("v", v, [N, H, V], "q's [N, H, ...]")
    _check_head_and_gate(q, k, v, g, "[N, H]")
    checks.check_written_state(state, [N, H, K, V], "[N, H, K, V]", v.dtype)
    run = choose("gated_linear_attention_step", backend, q.device)
    with torch.autocast(q.device.type, enabled=False):
        return run(q, k, v, g, state=state, scale=K**-0.5 if scale is None else scale)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    sequences: Sequences | None,
    chunk_size: int,
) -> Sequences:
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 4, [B, T, H, head_dim]")
    (B, T, H, K), V = q.shape, v.shape[3]
    checks.check_shape("k", k, [B, T, H, K], "q's [B, T, H, K]")
    checks.check_shape("v", v, [B, T, H, V], "q's [B, T, H, ...]")
    _check_head_and_gate(q, k, v, g, "[B, T, H]")
    checks.check_chunk_size(chunk_size)
    sequences = Sequences.given(q, cu_seqlens, sequences)
    if initial_state is not None:
        checks.check_state("initial_state", initial_state, [len(sequences), H, K, V], "[N, H, K, V]", v.dtype)
    return sequences


def _check_head_and_gate(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, per_head: str) -> None:
    checks.check_heads(q.shape[-2], v.shape[-2])
    checks.check_dtypes(q=q, k=k, v=v)
    if g is not None and g.ndim == q.ndim:
        checks.check_gate("g", g, list(q.shape), f"{per_head[:-1]}, K], or {per_head}", v)
    elif g is not None:
        checks.check_gate("g", g, list(q.shape[:-1]), f"{per_head}, or {per_head[:-1]}, K]", v)
