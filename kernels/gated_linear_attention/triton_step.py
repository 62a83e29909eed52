"""One token of gated linear attention for decoding: reads and writes every state once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.triton_common import check_inputs, contiguous, kernel, padded
from .arguments import LinearStepArguments


@kernel("gated_linear_attention_step", do_not_specialize=["scale"])
def linear_attention_step(
    q, k, v, g, state, o, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """One program: BV columns of one head's state [K, V]."""
    n_blocks: tl.constexpr = (V + BV - 1) // BV
    head = (tl.program_id(0) // n_blocks).to(tl.int64)  # of N * H
    key, value = tl.arange(0, BK), tl.program_id(0) % n_blocks * BV + tl.arange(0, BV)
    there = (key < K)[:, None] & (value < V)[None, :]
    tile = head * (K * V) + key[:, None] * V + value[None, :]
    b_state = tl.load(state + tile, mask=there, other=0.0)
    if g is not None:
        if PER_CHANNEL:
            b_state *= tl.exp(tl.load(g + head * K + key, mask=key < K, other=0.0).to(tl.float32))[:, None]
        else:
            b_state *= tl.exp(tl.load(g + head).to(tl.float32))
    b_k = tl.load(k + head * K + key, mask=key < K, other=0.0).to(tl.float32)
    b_v = tl.load(v + head * V + value, mask=value < V, other=0.0).to(tl.float32)
    b_state += b_k[:, None] * b_v[None, :]
    tl.store(state + tile, b_state, mask=there)
    b_q = tl.load(q + head * K + key, mask=key < K, other=0.0).to(tl.float32) * scale
    tl.store(o + head * V + value, tl.sum(b_q[:, None] * b_state, 0).to(o.dtype.element_ty), mask=value < V)


def run(x: LinearStepArguments) -> Tensor:
    """As the reference's step, for float32, bfloat16, float16 and head dims to 256."""
    N, H, K, V = x.state.shape
    check_inputs("gated_linear_attention_step", x.v, K=K, V=V)
    q, k, v, g = contiguous(x.q, x.k, x.v, x.g)
    o = torch.empty_like(v)
    BV = min(padded(V), 32)  # a row of 128 bytes
    grid = (N * H * triton.cdiv(V, BV),)
    with torch.cuda.device_of(x.state):
        linear_attention_step[grid](
            q=q, k=k, v=v, g=g, state=x.state, o=o, scale=x.scale,
            K=K, V=V, BK=padded(K), BV=BV, PER_CHANNEL=g is not None and g.ndim == 3, num_warps=4,
        )  # fmt: skip
    return o
