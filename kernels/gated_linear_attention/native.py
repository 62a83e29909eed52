"""Gated linear attention by the C++ kernels of gated_linear_attention.cpp."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ..native.library import OPS, call, decays, empty, kernel_dtype, n_segments
from ..shared.sequences import Sequences
from .chunked import gated_linear_attention_flops

OPS.define(
    "gated_linear_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? initial_state, float scale, "
    "int[] bounds, int chunk_size, bool keep) -> (Tensor o, Tensor final_state, Tensor states)"
)
OPS.define(
    "gated_linear_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor states, Tensor do, Tensor dstate, "
    "float scale, int[] bounds, int chunk_size) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dinitial_state)"
)


def gated_linear_attention_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None,
    sequences: Sequences,
    chunk_size: int,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Same contract as `gated_linear_attention_reference`, any chunk_size: the kernels work on 16 tokens at a time.

    Half-precision inputs multiply in float32. Kept for backward besides the inputs: a state per 64 tokens; nothing with
    recompute, which runs the forward pass again.
    """
    dtype = v.dtype
    q, k, v = (x.to(kernel_dtype(dtype)) for x in (q, k, v))
    bounds = list(sequences.starts)
    o, state = _GatedLinearAttention.apply(q, k, v, g, initial_state, scale, bounds, chunk_size, recompute)  # type: ignore[misc]
    return o.to(dtype), state


def gated_linear_attention_step_native(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, *, state: Tensor, scale: float
) -> Tensor:
    """q, k: [N, H, K]; v: [N, H, V]; g: [N, H, K], [N, H] or None; updates state [N, H, K, V]; returns o [N, H, V]."""
    (N, H, K), V, dtype = q.shape, v.shape[-1], v.dtype
    q, k, v = (x.to(kernel_dtype(dtype)).contiguous() for x in (q, k, v))
    decay = decays(g, k, state.dtype)
    decay = (decay if decay.ndim == 3 else decay[..., None]).expand(N, H, K).contiguous()
    o = torch.empty_like(v)
    tensors = [q, k, v, decay, state, o]
    call("hybridlm_gla_step", v.dtype, tensors, bounds=range(N + 1), heads=H, K=K, V=V, scale=scale)
    return o.to(dtype)


class _GatedLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, g, initial_state, scale, bounds, chunk_size, recompute):
        keep = any(ctx.needs_input_grad) and not recompute
        o, state, states = torch.ops.hybridlm_native.gated_linear_attention_forward(
            q, k, v, g, initial_state, scale, bounds, chunk_size, keep
        )
        ctx.save_for_backward(q, k, v, g, initial_state, states if keep else None)
        ctx.scale, ctx.bounds, ctx.chunk_size = scale, bounds, chunk_size
        return o, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do, dstate):
        *inputs, initial_state, states = ctx.saved_tensors
        if states is None:
            _, _, states = torch.ops.hybridlm_native.gated_linear_attention_forward(
                *inputs, initial_state, ctx.scale, ctx.bounds, ctx.chunk_size, True
            )
        dq, dk, dv, dg, dinitial = torch.ops.hybridlm_native.gated_linear_attention_backward(
            *inputs, states, do, dstate, ctx.scale, ctx.bounds, ctx.chunk_size
        )
        dg = None if inputs[3] is None else dg
        return dq, dk, dv, dg, None if initial_state is None else dinitial, None, None, None, None


def _call(direction: str, g: Tensor | None, tensors: list[Tensor | None], scale: float, bounds: list[int]) -> None:
    q, v = tensors[0], tensors[2]
    assert q is not None and v is not None
    H, K = q.shape[2:]
    gate = "vector" if g is not None and g.ndim == 4 else "head"
    function = f"hybridlm_gla_{gate}_{direction}"
    call(function, v.dtype, tensors, bounds=bounds, heads=H, K=K, V=v.shape[-1], scale=scale)


def _prepared(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> list[Tensor]:
    """q, k, v, exp(g) as the kernels read them."""
    decay = decays(g, k, torch.promote_types(v.dtype, torch.float32))
    return [x.contiguous() for x in (q, k, v, decay)]


def _forward(q, k, v, g, initial_state, scale, bounds, chunk_size, keep):
    inputs = _prepared(q, k, v, g)
    shape = (len(bounds) - 1, *q.shape[2:], v.shape[-1])
    o = empty(v.shape, v.dtype)
    final_state = empty(shape, inputs[3].dtype)
    states = empty((n_segments(bounds), *shape[1:]) if keep else (0,), inputs[3].dtype)
    initial = None if initial_state is None else initial_state.contiguous()
    _call("forward", g, [*inputs, initial, states if keep else None, o, final_state], scale, bounds)
    return o, final_state, states


def _backward(q, k, v, g, states, do, dstate, scale, bounds, chunk_size):
    inputs = _prepared(q, k, v, g)
    dstate = dstate.contiguous()
    dq, dk, dv, dg = (empty(x.shape, x.dtype) for x in inputs)
    dinitial = torch.empty_like(dstate)
    tensors = [*inputs, None, states, do.contiguous(), dstate, dq, dk, dv, dg, dinitial]
    _call("backward", g, tensors, scale, bounds)
    return dq, dk, dv, dg if g is None else dg.to(g.dtype), dinitial


OPS.impl("gated_linear_attention_forward", _forward, "CPU")
OPS.impl("gated_linear_attention_backward", _backward, "CPU")


# FLOPs as declared for `chunked`, so that a model counts the same whichever backend runs it.


@register_flop_formula(torch.ops.hybridlm_native.gated_linear_attention_forward)
def _forward_flops(q_shape, k_shape, v_shape, g_shape, *args, out_shape=None, **kwargs) -> int:
    B, T, H, K = q_shape
    return round(gated_linear_attention_flops(K, v_shape[-1], args[-2], _gate(g_shape)) * B * T * H)


@register_flop_formula(torch.ops.hybridlm_native.gated_linear_attention_backward)
def _backward_flops(q_shape, k_shape, v_shape, g_shape, *args, out_shape=None, **kwargs) -> int:
    """Per token and head: the scores and their two gradients, four products with the state, two with V."""
    B, T, H, K = q_shape
    V, C = v_shape[-1], args[-1]
    scores = gated_linear_attention_flops(K, 0, C, _gate(g_shape))
    return round((3 * scores + 8 * K * V + 4 * C * V) * B * T * H)


def _gate(g_shape) -> str | None:
    return None if g_shape is None else "channel" if len(g_shape) == 4 else "head"
