"""One token of the gated scan for decoding."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.triton_common import check_inputs, contiguous, kernel
from .arguments import ScanStepArguments

BLOCK = 1024


@kernel("gated_scan_step")
def scan_step(x, g, state, h, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_state = tl.load(state + at, mask=at < n, other=0.0) * tl.exp(
        tl.load(g + at, mask=at < n, other=0.0).to(tl.float32)
    )
    b_state += tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(state + at, b_state, mask=at < n)
    tl.store(h + at, b_state.to(h.dtype.element_ty), mask=at < n)


def run(arguments: ScanStepArguments) -> Tensor:
    """As the reference's step, for float32, bfloat16 and float16."""
    check_inputs("gated_scan_step", arguments.x)
    x, g = contiguous(arguments.x, arguments.g)
    h = torch.empty_like(x)
    with torch.cuda.device_of(x):
        scan_step[(triton.cdiv(x.numel(), BLOCK),)](x=x, g=g, state=arguments.state, h=h, n=x.numel(), BLOCK=BLOCK)
    return h
