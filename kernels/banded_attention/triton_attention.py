"""Banded attention in Triton: one launch forward, two backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.triton_band import ALL, BandLaunch, by_rows
from ..shared.triton_common import check_inputs
from .arguments import BandedArguments


def run(x: BandedArguments) -> Tensor:
    """As the reference, for float32, bfloat16 and float16 and head dims up to 256. Raises ValueError for others."""
    check_inputs("banded_attention", x.q, D=x.q.shape[-1])
    q, k, v = by_rows(x.q), by_rows(x.k), by_rows(x.v)
    launch = BandLaunch.of(q, k, x.sink, x.window, x.sequences)
    with torch.cuda.device_of(q):
        if torch.is_grad_enabled() and any(a.requires_grad for a in (q, k, v)):
            return _BandedAttention.apply(q, k, v, launch)  # type: ignore[return-value]
        return launch.forward(q, k, v, None, ALL, None)


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, launch: BandLaunch):
        log_sum = q.new_empty(launch.n_rows, dtype=torch.float32)
        o = launch.forward(q, k, v, None, ALL, log_sum)
        ctx.save_for_backward(q, k, v, o, log_sum)
        ctx.launch = launch
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do):
        q, k, v, o, log_sum = ctx.saved_tensors
        with torch.cuda.device_of(q):
            dq, dk, dv, _ = ctx.launch.backward(q, k, v, None, o, by_rows(do), ALL, log_sum)
            return dq, dk, dv, None
