"""Gated delta rule: the linear recurrence of DeltaNet and Gated DeltaNet."""

import torch
from torch import Tensor

from ..availability import fla_unavailable
from ..backend import choose, register
from ..sequences import Sequences
from .chunked import gated_delta_rule_chunked, gated_delta_rule_flops
from .fla import gated_delta_rule_fla
from .reference import gated_delta_rule_reference

__all__ = ["gated_delta_rule", "gated_delta_rule_flops"]

CHUNK_SIZES = (16, 32, 64, 128)

register("gated_delta_rule", "reference", gated_delta_rule_reference)
register("gated_delta_rule", "fla", gated_delta_rule_fla, unavailable=fla_unavailable)
register("gated_delta_rule", "chunked", gated_delta_rule_chunked, auto_on=None)


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
    chunk_size: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """S' = exp(g_t) S_{t-1};  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T;  o_t = scale S_t^T q_t.

    The gated delta rule of arXiv 2412.06464; g=None is the delta rule of DeltaNet, arXiv 2406.06484. Keys are used as
    given: normalise them first, the recurrence is stable for beta |k|^2 in [0, 2].

    q, k: [B, T, H, K]. v: [B, T, HV, V], HV a multiple of H; value head j reads with query and key head j // (HV / H).
    g: [B, T, HV] natural logarithm of the decay, <= 0. beta: [B, T, HV]. g and beta: float32 or v's dtype.
    scale: default K^-0.5. initial_state: [N, HV, K, V] float32 (float64 if v is), default 0; N = B sequences.
    cu_seqlens: [N + 1] int offsets of N documents packed along T, then B = 1; a document may be empty.
    chunk_size: 16, 32, 64 or 128 tokens worked on at a time; changes speed and memory only.
    backend: "auto" is the fastest one registered for the device, see `kernels.backend`.

    Returns o [B, T, HV, V] in v's dtype and, if asked for, the final state like initial_state (an empty document's is
    its initial state), else None. Raises ValueError on inputs that do not fit, BackendUnavailable on a backend that
    cannot run here.
    """
    sequences = _check(q, k, v, g, beta, initial_state, cu_seqlens, chunk_size)
    run = choose("gated_delta_rule", backend, q.device)
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
        )
    return o, state if output_final_state else None


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int,
) -> Sequences:
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q and v have {q.ndim} and {v.ndim} dimensions; allowed: 4, [B, T, heads, head_dim]")
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    _expect_shape("k", k, [B, T, H, K], "q's [B, T, H, K]")
    _expect_shape("v", v, [B, T, HV, V], "q's [B, T, ...]")
    if H == 0 or HV == 0 or HV % H:
        raise ValueError(f"v has {HV} heads and q has {H}; allowed: a positive multiple of q's, value heads share keys")
    if not q.dtype.is_floating_point or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; allowed: one floating dtype, cast them to v's")
    gates = {"beta": beta} if g is None else {"g": g, "beta": beta}
    for name, gate in gates.items():
        _expect_shape(name, gate, [B, T, HV], "[B, T, HV]")
        if gate.dtype not in (torch.float32, v.dtype):
            raise ValueError(f"{name} is {gate.dtype}; allowed: torch.float32 or v's {v.dtype}")
    if chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunk_size is {chunk_size}; allowed: {', '.join(map(str, CHUNK_SIZES))}")
    sequences = Sequences.of(q, cu_seqlens)
    if initial_state is not None:
        _expect_shape("initial_state", initial_state, [len(sequences), HV, K, V], "[N, HV, K, V]")
        state_dtype = torch.promote_types(v.dtype, torch.float32)
        if initial_state.dtype != state_dtype:
            raise ValueError(f"initial_state is {initial_state.dtype}; allowed: {state_dtype} for {v.dtype} inputs")
    return sequences


def _expect_shape(name: str, x: Tensor, expected: list[int], meaning: str) -> None:
    if list(x.shape) != expected:
        raise ValueError(f"{name} has shape {list(x.shape)}; allowed: {expected}, {meaning}")
