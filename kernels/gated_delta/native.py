"""The gated delta rule by the C++ kernels of gated_delta.cpp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ..native.library import OPS, call, decays, empty, kernel_dtype, n_segments
from ..shared.sequences import Sequences
from .chunked import gated_delta_rule_flops

OPS.define(
    "gated_delta_forward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor? initial_state, float scale, "
    "int[] bounds, int chunk_size, bool keep) -> (Tensor o, Tensor final_state, Tensor corrections, Tensor states)"
)
OPS.define(
    "gated_delta_backward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor corrections, Tensor states, "
    "Tensor do, Tensor dstate, float scale, int[] bounds, int chunk_size) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dbeta, Tensor dinitial_state)"
)


def gated_delta_rule_native(
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
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Same contract as `gated_delta_rule_reference`, any chunk_size: the kernels work on 16 tokens at a time.

    Half-precision inputs multiply in float32. Kept for backward besides the inputs: a vector per token and value head
    and a state per 64 tokens; nothing with recompute, which runs the forward pass again.
    """
    dtype = v.dtype
    q, k, v = (x.to(kernel_dtype(dtype)) for x in (q, k, v))
    o, state = _GatedDeltaRule.apply(
        q, k, v, g, beta, initial_state, scale, list(sequences.starts), chunk_size, recompute
    )  # type: ignore[misc]
    return o.to(dtype), state


def gated_delta_rule_step_native(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, *, state: Tensor, scale: float
) -> Tensor:
    """q, k: [N, H, K]; v: [N, HV, V]; g, beta: [N, HV]; updates state [N, HV, K, V] in place; returns o [N, HV, V]."""
    (N, H, K), (HV, V), dtype = q.shape, v.shape[1:], v.dtype
    q, k, v = (x.to(kernel_dtype(dtype)).contiguous() for x in (q, k, v))
    o = torch.empty_like(v)
    tensors = [q, k, v, decays(g, v, state.dtype), beta.to(state.dtype).contiguous(), state, o]
    shape = {"heads": H, "group": HV // H, "K": K, "V": V}
    call("hybridlm_gated_delta_step", v.dtype, tensors, bounds=range(N + 1), scale=scale, **shape)
    return o.to(dtype)


class _GatedDeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, g, beta, initial_state, scale, bounds, chunk_size, recompute):
        keep = any(ctx.needs_input_grad) and not recompute
        o, state, *kept = torch.ops.hybridlm_native.gated_delta_forward(
            q, k, v, g, beta, initial_state, scale, bounds, chunk_size, keep
        )
        ctx.save_for_backward(q, k, v, g, beta, initial_state, *(kept if keep else ()))
        ctx.scale, ctx.bounds, ctx.chunk_size = scale, bounds, chunk_size
        return o, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do, dstate):
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor twice
        (*inputs, initial_state), kept = saved[:6], saved[6:]
        if not kept:
            _, _, *kept = torch.ops.hybridlm_native.gated_delta_forward(
                *inputs, initial_state, ctx.scale, ctx.bounds, ctx.chunk_size, True
            )
        *grads, dinitial = torch.ops.hybridlm_native.gated_delta_backward(
            *inputs, *kept, do, dstate, ctx.scale, ctx.bounds, ctx.chunk_size
        )
        if inputs[3] is None:
            grads[3] = None
        return *grads, None if initial_state is None else dinitial, None, None, None, None


def _shape(q: Tensor, v: Tensor, scale: float, bounds: Sequence[int]) -> dict[str, Any]:
    H, K = q.shape[2:]
    HV, V = v.shape[2:]
    return {"bounds": bounds, "heads": H, "group": HV // H, "K": K, "V": V, "scale": scale}


def _prepared(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor) -> list[Tensor]:
    """q, k, v, exp(g), beta as the kernels read them."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    return [x.contiguous() for x in (q, k, v, decays(g, v, dtype), beta.to(dtype))]


def _forward(q, k, v, g, beta, initial_state, scale, bounds, chunk_size, keep):
    inputs = _prepared(q, k, v, g, beta)
    dtype = inputs[4].dtype
    HV, V = v.shape[2:]
    shape = (len(bounds) - 1, HV, q.shape[-1], V)
    o = empty(v.shape, v.dtype)
    final_state = empty(shape, dtype)
    corrections = empty(v.shape if keep else (0,), dtype)
    states = empty((n_segments(bounds), *shape[1:]) if keep else (0,), dtype)
    kept = (corrections, states) if keep else (None, None)
    initial = None if initial_state is None else initial_state.contiguous()
    tensors = [*inputs, initial, *kept, o, final_state]
    call("hybridlm_gated_delta_forward", v.dtype, tensors, **_shape(q, v, scale, bounds))
    return o, final_state, corrections, states


def _backward(q, k, v, g, beta, corrections, states, do, dstate, scale, bounds, chunk_size):
    inputs = _prepared(q, k, v, g, beta)
    H, K = q.shape[2:]
    HV = v.shape[2]
    per_value_head = (*q.shape[:2], HV, K)
    dq, dk, dv = (empty(shape, v.dtype) for shape in (per_value_head, per_value_head, v.shape))
    dg, dbeta = (empty(beta.shape, dstate.dtype) for _ in range(2))
    dstate = dstate.contiguous()
    dinitial = torch.empty_like(dstate)
    tensors = [*inputs, None, corrections, states, do.contiguous(), dstate, dq, dk, dv, dg, dbeta, dinitial]
    call("hybridlm_gated_delta_backward", v.dtype, tensors, **_shape(q, v, scale, bounds))
    if HV != H:
        dq, dk = (x.unflatten(2, (H, HV // H)).sum(3) for x in (dq, dk))
    return dq, dk, dv, dg.to(dg.dtype if g is None else g.dtype), dbeta.to(beta.dtype), dinitial


OPS.impl("gated_delta_forward", _forward, "CPU")
OPS.impl("gated_delta_backward", _backward, "CPU")


# FLOPs as declared for `chunked`, so that a model counts the same whichever backend runs it.


@register_flop_formula(torch.ops.hybridlm_native.gated_delta_forward)
def _forward_flops(q_shape, k_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
    B, T, H, K = q_shape
    HV, V = v_shape[2:]
    return round(gated_delta_rule_flops(K, V, args[-2], HV // H) * B * T * HV)


@register_flop_formula(torch.ops.hybridlm_native.gated_delta_backward)
def _backward_flops(q_shape, k_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
    """Per token: six products with the state, four of C x C matrices with V and, per key head, five with K."""
    B, T, H, K = q_shape
    HV, V = v_shape[2:]
    C = args[-1]
    return (12 * K * V * HV + 8 * C * V * HV + 10 * C * K * H) * B * T
