"""The gated scan by the C++ kernels of native.cpp; a step is a scan of one token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..native.library import OPS, NativeCall, NativeKernel, decays, empty, implement, kernel_dtype, n_segments
from .arguments import ScanArguments, ScanStepArguments

_PROBLEM = ("x", "decay", "initial_state", "states")
FORWARD = NativeKernel("hybridlm_gated_scan_forward", *_PROBLEM, "h", "final_state")
BACKWARD = NativeKernel("hybridlm_gated_scan_backward", *_PROBLEM, "dh", "dfinal_state", "dx", "dg", "dinitial_state")

OPS.define(
    "gated_scan_forward(Tensor x, Tensor g, Tensor? initial_state, int[] bounds, bool keep) "
    "-> (Tensor h, Tensor final_state, Tensor states)"
)
OPS.define(
    "gated_scan_backward(Tensor x, Tensor g, Tensor states, Tensor dh, Tensor dstate, int[] bounds) "
    "-> (Tensor dx, Tensor dg, Tensor dinitial_state)"
)


def run(arguments: ScanArguments) -> tuple[Tensor, Tensor]:
    """As the reference; keeps a state per 64 tokens for backward besides the inputs."""
    x, g, initial_state, sequences = arguments
    dtype = x.dtype
    h, state = _GatedScan.apply(x.to(kernel_dtype(dtype)), g, initial_state, list(sequences.starts))  # type: ignore[misc]
    return h.to(dtype), state


def step(arguments: ScanStepArguments) -> Tensor:
    """As the reference's."""
    x, g, state = arguments
    dtype = x.dtype
    x = x.to(kernel_dtype(dtype)).contiguous()
    h = torch.empty_like(x)
    FORWARD(  # sequences of one token; the kernel reads a state before it writes it
        _call(x[0], range(len(x) + 1)),
        x=x, decay=decays(g, x, state.dtype), initial_state=state, states=None, h=h, final_state=state,
    )  # fmt: skip
    return h.to(dtype)


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, g, initial_state, bounds):
        h, state, states = torch.ops.hybridlm_native.gated_scan_forward(
            x, g, initial_state, bounds, any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(x, g, states)
        ctx.bounds, ctx.has_state = bounds, initial_state is not None
        return h, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh, dstate):
        dx, dg, dinitial = torch.ops.hybridlm_native.gated_scan_backward(*ctx.saved_tensors, dh, dstate, ctx.bounds)
        return dx, dg, dinitial if ctx.has_state else None, None


def _call(token: Tensor, bounds: Sequence[int]) -> NativeCall:
    """Every element of a token is a channel of the one head."""
    return NativeCall(token.dtype, bounds, heads=1, K=token.numel(), V=1)


def _forward(x, g, initial_state, bounds, keep):
    h, final_state, states = _results(empty, x, bounds, keep)
    FORWARD(
        _call(x[0, 0], bounds), x=x.contiguous(), decay=decays(g, x, final_state.dtype),
        initial_state=None if initial_state is None else initial_state.contiguous(),
        states=states if keep else None, h=h, final_state=final_state,
    )  # fmt: skip
    return h, final_state, states


def _results(make, x, bounds, keep):
    """h, the final state, and what is kept, as `make` makes them."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        make(x.shape, dtype=x.dtype),
        make((len(bounds) - 1, *x.shape[2:]), dtype=dtype),
        make((n_segments(bounds), *x.shape[2:]) if keep else (0,), dtype=dtype),
    )


def _backward(x, g, states, dh, dstate, bounds):
    x, decay, dstate = x.contiguous(), decays(g, x, dstate.dtype), dstate.contiguous()
    dx, dg, dinitial = empty(x.shape, x.dtype), empty(decay.shape, decay.dtype), torch.empty_like(dstate)
    BACKWARD(
        _call(x[0, 0], bounds), x=x, decay=decay, initial_state=None, states=states,
        dh=dh.contiguous(), dfinal_state=dstate, dx=dx, dg=dg, dinitial_state=dinitial,
    )  # fmt: skip
    return dx, dg.to(g.dtype), dinitial


def _blank_results(x, g, initial_state, bounds, keep):
    return _results(x.new_empty, x, bounds, keep)


def _blank_gradients(x, g, states, dh, dstate, bounds):
    return tuple(y.new_empty(y.shape) for y in (x, g, dstate))


implement("gated_scan_forward", _forward, _blank_results)
implement("gated_scan_backward", _backward, _blank_gradients)
