"""The gated scan by the C++ kernels of gated_scan.cpp."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..native.library import OPS, call, decays, empty, kernel_dtype, n_segments
from ..shared.sequences import Sequences

OPS.define(
    "gated_scan_forward(Tensor x, Tensor g, Tensor? initial_state, int[] bounds, bool keep) "
    "-> (Tensor h, Tensor final_state, Tensor states)"
)
OPS.define(
    "gated_scan_backward(Tensor x, Tensor g, Tensor states, Tensor dh, Tensor dstate, int[] bounds) "
    "-> (Tensor dx, Tensor dg, Tensor dinitial_state)"
)


def gated_scan_native(
    x: Tensor, g: Tensor, *, initial_state: Tensor | None, sequences: Sequences
) -> tuple[Tensor, Tensor]:
    """Same contract as `gated_scan_reference`; keeps a state per 64 tokens for backward besides the inputs."""
    dtype = x.dtype
    h, state = _GatedScan.apply(x.to(kernel_dtype(dtype)), g, initial_state, list(sequences.starts))  # type: ignore[misc]
    return h.to(dtype), state


def gated_scan_step_native(x: Tensor, g: Tensor, *, state: Tensor) -> Tensor:
    """x, g: [N, ...]; updates state [N, ...] in place; returns h [N, ...]."""
    dtype = x.dtype
    x = x.to(kernel_dtype(dtype)).contiguous()
    h = torch.empty_like(x)
    bounds = range(len(x) + 1)  # sequences of one token; the kernel reads a state before it writes it
    tensors = [x, decays(g, x, state.dtype), state, None, h, state]
    call("hybridlm_gated_scan_forward", x.dtype, tensors, bounds=bounds, heads=1, K=x[0].numel(), V=1)
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


def _forward(x, g, initial_state, bounds, keep):
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs = [x.contiguous(), decays(g, x, dtype)]
    h = empty(x.shape, x.dtype)
    final_state = empty((len(bounds) - 1, *x.shape[2:]), dtype)
    states = empty((n_segments(bounds), *x.shape[2:]) if keep else (0,), dtype)
    initial = None if initial_state is None else initial_state.contiguous()
    tensors = [*inputs, initial, states if keep else None, h, final_state]
    call("hybridlm_gated_scan_forward", x.dtype, tensors, bounds=bounds, heads=1, K=x[0, 0].numel(), V=1)
    return h, final_state, states


def _backward(x, g, states, dh, dstate, bounds):
    inputs = [x.contiguous(), decays(g, x, dstate.dtype)]
    dstate = dstate.contiguous()
    dx, dg = (empty(y.shape, y.dtype) for y in inputs)
    dinitial = torch.empty_like(dstate)
    tensors = [*inputs, states, dh.contiguous(), dstate, dx, dg, dinitial]
    call("hybridlm_gated_scan_backward", x.dtype, tensors, bounds=bounds, heads=1, K=x[0, 0].numel(), V=1)
    return dx, dg.to(g.dtype), dinitial


OPS.impl("gated_scan_forward", _forward, "CPU")
OPS.impl("gated_scan_backward", _backward, "CPU")
