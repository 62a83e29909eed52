"""Gated linear attention by the C++ kernels of native.cpp and native_step.cpp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ..native.library import OPS, NativeCall, NativeKernel, decays, empty, implement, kernel_dtype, n_segments
from .arguments import LinearArguments, LinearStepArguments
from .chunked import gated_linear_attention_flops

GATES = ("vector", "head")  # a decay per key channel; one per head
_PROBLEM = ("q", "k", "v", "decay", "initial_state", "states")
_GRADIENTS = ("dout", "dfinal_state", "dq", "dk", "dv", "dg", "dinitial_state")
FORWARD = {gate: NativeKernel(f"hybridlm_gla_{gate}_forward", *_PROBLEM, "o", "final_state") for gate in GATES}
BACKWARD = {gate: NativeKernel(f"hybridlm_gla_{gate}_backward", *_PROBLEM, *_GRADIENTS) for gate in GATES}
STEP = NativeKernel("hybridlm_gla_step", "q", "k", "v", "decay", "state", "o")

OPS.define(
    "gated_linear_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? initial_state, float scale, "
    "int[] bounds, int chunk_size, bool keep) -> (Tensor o, Tensor final_state, Tensor states)"
)
OPS.define(
    "gated_linear_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor states, Tensor do, Tensor dstate, "
    "float scale, int[] bounds, int chunk_size) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dinitial_state)"
)


def run(x: LinearArguments) -> tuple[Tensor, Tensor]:
    """As the reference, any chunk_size: the kernels work on 16 tokens at a time.

    Half-precision inputs multiply in float32. Kept for backward besides the inputs: a state per 64 tokens; nothing with
    recompute, which runs the forward pass again.
    """
    dtype = x.v.dtype
    q, k, v = (a.to(kernel_dtype(dtype)) for a in (x.q, x.k, x.v))
    bounds = list(x.sequences.starts)
    o, state = _GatedLinearAttention.apply(q, k, v, x.g, x.initial_state, x.scale, bounds, x.chunk_size, x.recompute)  # type: ignore[misc]
    return o.to(dtype), state


def step(x: LinearStepArguments) -> Tensor:
    """As the reference's."""
    dtype = x.v.dtype
    q, k, v = (a.to(kernel_dtype(dtype)).contiguous() for a in (x.q, x.k, x.v))
    decay = decays(x.g, k, x.state.dtype)
    if decay.ndim == 2:
        decay = decay[..., None].expand(k.shape).contiguous()
    o = torch.empty_like(v)
    STEP(_call(q, v, range(len(q) + 1), x.scale), q=q, k=k, v=v, decay=decay, state=x.state, o=o)
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


def _call(q: Tensor, v: Tensor, bounds: Sequence[int], scale: float) -> NativeCall:
    return NativeCall(v.dtype, bounds, heads=q.shape[-2], K=q.shape[-1], V=v.shape[-1], scale=scale)


def _kind(g: Tensor | None) -> str:
    return "vector" if g is not None and g.ndim == 4 else "head"


def _inputs(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> dict[str, Tensor]:
    """As the kernels read them."""
    inputs = {"q": q, "k": k, "v": v, "decay": decays(g, k, torch.promote_types(v.dtype, torch.float32))}
    return {name: x.contiguous() for name, x in inputs.items()}


def _forward(q, k, v, g, initial_state, scale, bounds, chunk_size, keep):
    inputs = _inputs(q, k, v, g)
    o, final_state, states = _results(empty, q, v, bounds, keep)
    FORWARD[_kind(g)](
        _call(q, v, bounds, scale), **inputs,
        initial_state=None if initial_state is None else initial_state.contiguous(),
        states=states if keep else None, o=o, final_state=final_state,
    )  # fmt: skip
    return o, final_state, states


def _results(make, q, v, bounds, keep):
    """o, the final state, and what is kept, as `make` makes them."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    state_shape = (*q.shape[2:], v.shape[-1])
    return (
        make(v.shape, dtype=v.dtype),
        make((len(bounds) - 1, *state_shape), dtype=dtype),
        make((n_segments(bounds), *state_shape) if keep else (0,), dtype=dtype),
    )


def _backward(q, k, v, g, states, do, dstate, scale, bounds, chunk_size):
    inputs = _inputs(q, k, v, g)
    dstate = dstate.contiguous()
    dq, dk, dv, dg = (empty(x.shape, x.dtype) for x in inputs.values())
    dinitial = torch.empty_like(dstate)
    BACKWARD[_kind(g)](
        _call(q, v, bounds, scale), **inputs,
        initial_state=None, states=states, dout=do.contiguous(), dfinal_state=dstate,
        dq=dq, dk=dk, dv=dv, dg=dg, dinitial_state=dinitial,
    )  # fmt: skip
    return dq, dk, dv, dg if g is None else dg.to(g.dtype), dinitial


def _blank_results(q, k, v, g, initial_state, scale, bounds, chunk_size, keep):
    return _results(v.new_empty, q, v, bounds, keep)


def _blank_gradients(q, k, v, g, states, do, dstate, scale, bounds, chunk_size):
    dg = dstate.new_empty(q.shape[:3]) if g is None else g.new_empty(g.shape)
    return *(x.new_empty(x.shape) for x in (q, k, v)), dg, dstate.new_empty(dstate.shape)


implement("gated_linear_attention_forward", _forward, _blank_results)
implement("gated_linear_attention_backward", _backward, _blank_gradients)


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
