"""Head-routed attention in Triton: two launches forward, the pairs in order and their attention, and two backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.triton_band import BandLaunch, Order, by_rows
from ..shared.triton_common import check_inputs, padded, tables
from .arguments import RoutedArguments
from .triton_order import routed_order

ORDER_BLOCK = 4096  # pairs


def run(x: RoutedArguments) -> Tensor:
    """As the reference, for float32, bfloat16 and float16 and head dims up to 256. Raises ValueError for others."""
    check_inputs("head_routed_attention", x.q, D=x.q.shape[-1])
    q, k, v, gate = by_rows(x.q), by_rows(x.k), by_rows(x.v), x.gate
    launch = BandLaunch.of(q, k, x.sink, x.window, x.sequences)
    with torch.cuda.device_of(q):
        if torch.is_grad_enabled() and any(a.requires_grad for a in (q, k, v, gate)):
            return _HeadRoutedAttention.apply(q, k, v, gate, launch)  # type: ignore[return-value]
        return launch.forward(q, k, v, gate, _order(launch, gate), None)


def _order(launch: BandLaunch, gate: Tensor) -> Order:
    n, tokens, G = len(launch.sequences), launch.B * launch.T, launch.H // launch.HK
    order, count, before = (
        gate.new_empty(shape, dtype=torch.int32) for shape in (launch.n_rows, (n, launch.HK), (launch.HK, tokens))
    )
    block = min(ORDER_BLOCK, padded(launch.sequences.longest * G))
    routed_order[(n * launch.HK,)](
        gate=gate, order=order, count=count, before=before, gate_step=gate.stride(),
        sequence=tables(launch.sequences, block, gate.device).sequence, T=launch.T, n_tokens=tokens,
        H=launch.H, HK=launch.HK, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return Order(order, count, before)


class _HeadRoutedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, gate, launch: BandLaunch):
        rows = _order(launch, gate)
        log_sum = q.new_empty(launch.n_rows, dtype=torch.float32)
        o = launch.forward(q, k, v, gate, rows, log_sum)
        ctx.save_for_backward(q, k, v, gate, o, log_sum, *rows)
        ctx.launch = launch
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do):
        q, k, v, gate, o, log_sum, *rows = ctx.saved_tensors
        with torch.cuda.device_of(q):
            return *ctx.launch.backward(q, k, v, gate, o, by_rows(do), Order(*rows), log_sum), None
