"""Banded attention by the C++ kernels of native.cpp and native_step.cpp: only the sink and the window are visited."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ..native import band
from ..native.library import OPS, NativeKernel, empty, implement, kernel_dtype
from .arguments import BandedArguments, BandedStepArguments

FORWARD = NativeKernel("hybridlm_banded_attention_forward", *band.PROBLEM, "pairs")
BACKWARD = NativeKernel("hybridlm_banded_attention_backward", *band.PROBLEM, *band.GRADIENTS)
STEP = NativeKernel("hybridlm_banded_attention_step", *band.STEP)

OPS.define(
    "banded_attention_forward(Tensor q, Tensor k, Tensor v, int[] sink, int[] window, int[] bounds) "
    "-> (Tensor o, Tensor lse)"
)
OPS.define(
    "banded_attention_backward(Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor do, int[] sink, "
    "int[] window, int[] bounds) -> (Tensor dq, Tensor dk, Tensor dv)"
)


def run(x: BandedArguments) -> Tensor:
    """As the reference. Half-precision inputs multiply in float32.

    Kept for backward besides the inputs: the output and a number per token and head.
    """
    dtype = x.q.dtype
    q, k, v = (a.to(kernel_dtype(dtype)) for a in (x.q, x.k, x.v))
    return _BandedAttention.apply(q, k, v, x.sink, x.window, x.sequences.starts).to(dtype)  # type: ignore[misc]


def step(x: BandedStepArguments) -> Tensor:
    """As the reference's."""
    return band.step(STEP, x.q, x.k, x.v, None, x.seen)


def computed_scores(x: BandedArguments) -> int:
    """How many scores the forward kernel computes, those of masked pairs at the edges of its tiles among them."""
    count = torch.zeros(1, dtype=torch.int64)
    o, lse = band.results(torch.empty, x.q)
    band.launch(FORWARD, x.q, x.k, x.v, x.sink, x.window, x.sequences.starts, lse=lse, o=o, pairs=count)
    return int(count)


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, sink, window, bounds):
        o, lse = torch.ops.hybridlm_native.banded_attention_forward(q, k, v, sink, window, bounds)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.numbers = (sink, window, bounds)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do):
        backward = torch.ops.hybridlm_native.banded_attention_backward
        return *backward(*ctx.saved_tensors, do, *ctx.numbers), None, None, None


def _forward(q, k, v, sink, window, bounds):
    o, lse = band.results(empty, q)
    band.launch(FORWARD, q, k, v, sink, window, bounds, lse=lse, o=o, pairs=None)
    return o, lse


def _backward(q, k, v, o, lse, do, sink, window, bounds):
    dq, dk, dv = (empty(x.shape, x.dtype) for x in (q, k, v))
    given = {"lse": lse, "o": o, "dout": do.contiguous(), "dq": dq, "dk": dk, "dv": dv}
    band.launch(BACKWARD, q, k, v, sink, window, bounds, **given)
    return dq, dk, dv


def _blank_results(q, k, v, sink, window, bounds):
    return band.results(q.new_empty, q)


def _blank_gradients(q, k, v, o, lse, do, sink, window, bounds):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


implement("banded_attention_forward", _forward, _blank_results)
implement("banded_attention_backward", _backward, _blank_gradients)


@register_flop_formula(torch.ops.hybridlm_native.banded_attention_forward)
def _forward_flops(q_shape, k_shape, v_shape, sink, window, bounds, *, out_shape=None, **kwargs) -> int:
    """Two products with every pair of a query and a key that it sees."""
    return band.flops(2, q_shape, k_shape, sink, window, bounds)


@register_flop_formula(torch.ops.hybridlm_native.banded_attention_backward)
def _backward_flops(q_shape, k_shape, *args, out_shape=None, **kwargs) -> int:
    """Five products, one of which is the scores again."""
    return band.flops(5, q_shape, k_shape, *args[-3:])
