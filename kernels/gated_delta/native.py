"""The gated delta rule by the C++ kernels of native.cpp and native_step.cpp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ..native.library import OPS, NativeCall, NativeKernel, decays, empty, implement, kernel_dtype, n_segments
from .arguments import DeltaArguments, DeltaStepArguments
from .chunked import gated_delta_rule_flops

_PROBLEM = ("q", "k", "v", "decay", "beta", "initial_state", "corrections", "states")
_GRADIENTS = ("dout", "dfinal_state", "dq", "dk", "dv", "dg", "dbeta", "dinitial_state")
FORWARD = NativeKernel("hybridlm_gated_delta_forward", *_PROBLEM, "o", "final_state")
BACKWARD = NativeKernel("hybridlm_gated_delta_backward", *_PROBLEM, *_GRADIENTS)
STEP = NativeKernel("hybridlm_gated_delta_step", "q", "k", "v", "decay", "beta", "state", "o")

OPS.define(
    "gated_delta_forward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor? initial_state, float scale, "
    "int[] bounds, int chunk_size, bool keep) -> (Tensor o, Tensor final_state, Tensor corrections, Tensor states)"
)
OPS.define(
    "gated_delta_backward(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor corrections, Tensor states, "
    "Tensor do, Tensor dstate, float scale, int[] bounds, int chunk_size) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dbeta, Tensor dinitial_state)"
)


def run(x: DeltaArguments) -> tuple[Tensor, Tensor]:
    """As the reference, any chunk_size: the kernels work on 16 tokens at a time.

    Half-precision inputs multiply in float32. Kept for backward besides the inputs: a vector per token and value head
    and a state per 64 tokens; nothing with recompute, which runs the forward pass again.
    """
    dtype = x.v.dtype
    q, k, v = (a.to(kernel_dtype(dtype)) for a in (x.q, x.k, x.v))
    bounds = list(x.sequences.starts)
    o, state = _GatedDeltaRule.apply(q, k, v, x.g, x.beta, x.initial_state, x.scale, bounds, x.chunk_size, x.recompute)  # type: ignore[misc]
    return o.to(dtype), state


def step(x: DeltaStepArguments) -> Tensor:
    """As the reference's."""
    dtype, exact = x.v.dtype, x.state.dtype
    q, k, v = (a.to(kernel_dtype(dtype)).contiguous() for a in (x.q, x.k, x.v))
    o = torch.empty_like(v)
    STEP(
        _call(q, v, range(len(q) + 1), x.scale),
        q=q, k=k, v=v, decay=decays(x.g, v, exact), beta=x.beta.to(exact).contiguous(), state=x.state, o=o,
    )  # fmt: skip
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


def _call(q: Tensor, v: Tensor, bounds: Sequence[int], scale: float) -> NativeCall:
    H, HV = q.shape[-2], v.shape[-2]
    return NativeCall(v.dtype, bounds, heads=H, K=q.shape[-1], V=v.shape[-1], group=HV // H, scale=scale)


def _inputs(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor) -> dict[str, Tensor]:
    """As the kernels read them."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    inputs = {"q": q, "k": k, "v": v, "decay": decays(g, v, dtype), "beta": beta.to(dtype)}
    return {name: x.contiguous() for name, x in inputs.items()}


def _forward(q, k, v, g, beta, initial_state, scale, bounds, chunk_size, keep):
    inputs = _inputs(q, k, v, g, beta)
    o, final_state, corrections, states = _results(empty, q, v, bounds, keep)
    FORWARD(
        _call(q, v, bounds, scale), **inputs,
        initial_state=None if initial_state is None else initial_state.contiguous(),
        corrections=corrections if keep else None, states=states if keep else None, o=o, final_state=final_state,
    )  # fmt: skip
    return o, final_state, corrections, states


def _results(make, q, v, bounds, keep):
    """o, the final state, and what is kept, as `make` makes them."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    state_shape = (v.shape[2], q.shape[3], v.shape[3])
    return (
        make(v.shape, dtype=v.dtype),
        make((len(bounds) - 1, *state_shape), dtype=dtype),
        make(v.shape if keep else (0,), dtype=dtype),
        make((n_segments(bounds), *state_shape) if keep else (0,), dtype=dtype),
    )


def _backward(q, k, v, g, beta, corrections, states, do, dstate, scale, bounds, chunk_size):
    H, K = q.shape[2:]
    HV = v.shape[2]
    per_value_head = (*q.shape[:2], HV, K)
    dq, dk, dv = (empty(shape, v.dtype) for shape in (per_value_head, per_value_head, v.shape))
    dg, dbeta = (empty(beta.shape, dstate.dtype) for _ in range(2))
    dstate = dstate.contiguous()
    dinitial = torch.empty_like(dstate)
    BACKWARD(
        _call(q, v, bounds, scale), **_inputs(q, k, v, g, beta),
        initial_state=None, corrections=corrections, states=states, dout=do.contiguous(), dfinal_state=dstate,
        dq=dq, dk=dk, dv=dv, dg=dg, dbeta=dbeta, dinitial_state=dinitial,
    )  # fmt: skip
    if HV != H:
        dq, dk = (x.unflatten(2, (H, HV // H)).sum(3) for x in (dq, dk))
    return dq, dk, dv, dg.to(dg.dtype if g is None else g.dtype), dbeta.to(beta.dtype), dinitial


def _blank_results(q, k, v, g, beta, initial_state, scale, bounds, chunk_size, keep):
    return _results(v.new_empty, q, v, bounds, keep)


def _blank_gradients(q, k, v, g, beta, corrections, states, do, dstate, scale, bounds, chunk_size):
    dg = beta.new_empty(beta.shape, dtype=dstate.dtype if g is None else g.dtype)
    return *(x.new_empty(x.shape) for x in (q, k, v)), dg, beta.new_empty(beta.shape), dstate.new_empty(dstate.shape)


implement("gated_delta_forward", _forward, _blank_results)
implement("gated_delta_backward", _backward, _blank_gradients)


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
