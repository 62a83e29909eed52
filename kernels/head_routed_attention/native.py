"""Head-routed attention by the C++ kernels of native.cpp and native_step.cpp: only active pairs are computed."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ..native.library import OPS, NativeCall, NativeKernel, empty, implement, kernel_dtype
from ..shared.checks import state_dtype
from .arguments import RoutedArguments, RoutedStepArguments

_PROBLEM = ("q", "k", "v", "gate", "strides", "windows", "sinks", "lse", "o")
FORWARD = NativeKernel("hybridlm_head_routed_attention_forward", *_PROBLEM, "pairs")
BACKWARD = NativeKernel("hybridlm_head_routed_attention_backward", *_PROBLEM, "dout", "dq", "dk", "dv", "dgate")
STEP = NativeKernel("hybridlm_head_routed_attention_step", "q", "k", "v", "gate", "seen", "strides", "o")

OPS.define(
    "head_routed_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? gate, int[] sink, int[] window, int[] bounds) "
    "-> (Tensor o, Tensor lse)"
)
OPS.define(
    "head_routed_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? gate, Tensor o, Tensor lse, Tensor do, "
    "int[] sink, int[] window, int[] bounds) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dgate)"
)


def run(x: RoutedArguments) -> Tensor:
    """As the reference. Half-precision inputs multiply in float32; a denormal gate is 0, as denormals are everywhere.

    Kept for backward besides the inputs: the output and a number per token and head.
    """
    dtype = x.q.dtype
    q, k, v = (a.to(kernel_dtype(dtype)) for a in (x.q, x.k, x.v))
    return _RoutedAttention.apply(q, k, v, x.gate, x.sink, x.window, x.sequences.starts).to(dtype)  # type: ignore[misc]


def step(x: RoutedStepArguments) -> Tensor:
    """As the reference's."""
    dtype, (N, H, D), (S, kv_heads) = x.q.dtype, x.q.shape, x.k.shape[1:3]
    q, k, v = (a.to(kernel_dtype(dtype)) for a in (x.q, x.k, x.v))
    q, (k, v) = q.contiguous(), (a if a.stride(3) == 1 else a.contiguous() for a in (k, v))
    o, bounds = torch.empty_like(q), [n * S for n in range(N + 1)]
    STEP(
        NativeCall(q.dtype, bounds, heads=kv_heads, K=D, V=D, group=H // kv_heads, scale=D**-0.5),
        q=q, k=k, v=v, gate=x.gate.to(state_dtype(dtype)).contiguous(),
        seen=None if x.seen is None else x.seen.contiguous(),
        strides=torch.tensor([stride for a in (k, v) for stride in a.stride()[:3]]), o=o,
    )  # fmt: skip
    return o.to(dtype)


def computed_scores(x: RoutedArguments) -> int:
    """How many scores the forward kernel computes, those of masked pairs at the edges of its tiles among them."""
    pairs = torch.zeros(1, dtype=torch.int64)
    o, lse = _results(torch.empty, x.q)
    _launch(FORWARD, x.q, x.k, x.v, x.gate, x.sink, x.window, x.sequences.starts, lse=lse, o=o, pairs=pairs)
    return int(pairs)


class _RoutedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, gate, sink, window, bounds):
        o, lse = torch.ops.hybridlm_native.head_routed_attention_forward(q, k, v, gate, sink, window, bounds)
        ctx.save_for_backward(q, k, v, gate, o, lse)
        ctx.numbers = (sink, window, bounds)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do):
        *grads, dgate = torch.ops.hybridlm_native.head_routed_attention_backward(
            *(saved := ctx.saved_tensors), do, *ctx.numbers
        )
        return *grads, None if saved[3] is None else dgate, None, None, None


def _launch(kernel: NativeKernel, q, k, v, gate, sink, window, bounds, **others: Tensor | None) -> None:
    q, k, v = (_in_place(x) for x in (q, k, v))
    strides = torch.tensor([stride for x in (q, k, v) for stride in x.stride()[1:3]])
    H, D = q.shape[2:]
    kv_heads = k.shape[2]
    kernel(
        NativeCall(q.dtype, bounds, heads=kv_heads, K=D, V=D, group=H // kv_heads, scale=D**-0.5),
        q=q, k=k, v=v, gate=None if gate is None else gate.to(state_dtype(q.dtype)).contiguous(), strides=strides,
        windows=torch.tensor(window) if window else None, sinks=torch.tensor(sink) if window else None, **others,
    )  # fmt: skip


def _in_place(x: Tensor) -> Tensor:
    """x [B, T, heads, D] itself if its vectors are dense and its rows follow one another, else a copy."""
    fits = x.stride(3) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    return x if fits else x.contiguous()


def _forward(q, k, v, gate, sink, window, bounds):
    o, lse = _results(empty, q)
    _launch(FORWARD, q, k, v, gate, sink, window, bounds, lse=lse, o=o, pairs=None)
    return o, lse


def _results(make, q):
    return make(q.shape, dtype=q.dtype), make(q.shape[:3], dtype=state_dtype(q.dtype))


def _backward(q, k, v, gate, o, lse, do, sink, window, bounds):
    dq, dk, dv = (empty(x.shape, x.dtype) for x in (q, k, v))
    dgate = None if gate is None else torch.empty(gate.shape, dtype=lse.dtype)
    _launch(
        BACKWARD, q, k, v, gate, sink, window, bounds,
        lse=lse, o=o, dout=do.contiguous(), dq=dq, dk=dk, dv=dv, dgate=dgate,
    )  # fmt: skip
    return dq, dk, dv, q.new_empty(0) if gate is None or dgate is None else dgate.to(gate.dtype)


def _blank_results(q, k, v, gate, sink, window, bounds):
    return _results(q.new_empty, q)


def _blank_gradients(q, k, v, gate, o, lse, do, sink, window, bounds):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, q.new_empty(0) if gate is None else gate))


implement("head_routed_attention_forward", _forward, _blank_results)
implement("head_routed_attention_backward", _backward, _blank_gradients)


# A FLOP counter gives shapes and no values: counted are all heads, as if none were inactive. What the active ones cost
# is `head_routed_attention_flops`.


@register_flop_formula(torch.ops.hybridlm_native.head_routed_attention_forward)
def _forward_flops(q_shape, k_shape, v_shape, gate_shape, sink, window, bounds, *, out_shape=None, **kwargs) -> int:
    """Two products with every pair of a query and a key that it sees."""
    return 4 * q_shape[3] * _pairs(q_shape[2], k_shape[2], sink, window, bounds)


@register_flop_formula(torch.ops.hybridlm_native.head_routed_attention_backward)
def _backward_flops(q_shape, k_shape, *args, out_shape=None, **kwargs) -> int:
    """Five products, one of which is the scores again."""
    return 10 * q_shape[3] * _pairs(q_shape[2], k_shape[2], *args[-3:])


def _pairs(heads: int, kv_heads: int, sink: Sequence[int], window: Sequence[int], bounds: Sequence[int]) -> int:
    """Of queries and the keys that they see, all heads active."""
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    if not window:
        return heads * sum(n * (n + 1) // 2 for n in lengths)
    seen = [min(w + s, n) for s, w in zip(sink, window, strict=True) for n in lengths]
    whole = [n for _ in window for n in lengths]
    return heads // kv_heads * sum(m * (m + 1) // 2 + (n - m) * m for m, n in zip(seen, whole, strict=True))
