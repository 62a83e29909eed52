"""One token of the gated delta rule in one kernel that reads and writes each state once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.triton_common import check_inputs, contiguous, kernel, multiprocessors, padded
from .arguments import DeltaStepArguments


@kernel("gated_delta_rule_step")
def delta_step(
    q,
    k,
    v,
    g,
    beta,
    state,
    o,
    scale,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """One program: one sequence, one value head, BV columns of its state."""
    n_blocks: tl.constexpr = (V + BV - 1) // BV
    value_head = (tl.program_id(0) // n_blocks).to(tl.int64)  # n * HV + head
    key_head = value_head // HV * H + value_head % HV // (HV // H)
    key = tl.arange(0, BK)
    value = tl.program_id(0) % n_blocks * BV + tl.arange(0, BV)
    at = state + value_head * (K * V) + key[:, None] * V + value[None, :]
    inside = (key < K)[:, None] & (value < V)[None, :]
    before = tl.load(at, mask=inside, other=0.0)  # [BK, BV]
    queries = tl.load(q + key_head * K + key, mask=key < K, other=0.0).to(tl.float32)
    keys = tl.load(k + key_head * K + key, mask=key < K, other=0.0).to(tl.float32)
    values = tl.load(v + value_head * V + value, mask=value < V, other=0.0).to(tl.float32)
    if g is not None:
        before *= tl.exp(tl.load(g + value_head).to(tl.float32))
    error = values - tl.sum(before * keys[:, None], 0)
    after = before + keys[:, None] * (tl.load(beta + value_head).to(tl.float32) * error)[None, :]
    tl.store(at, after, mask=inside)
    out = tl.sum(after * (queries * scale)[:, None], 0)
    tl.store(o + value_head * V + value, out.to(o.dtype.element_ty), mask=value < V)


def run(x: DeltaStepArguments) -> Tensor:
    """As the reference's step, for float32, bfloat16, float16 and head dims up to 256."""
    H, K = x.q.shape[1:]
    N, HV, V = x.v.shape
    check_inputs("gated_delta_rule_step", x.v, K=K, V=V)
    q, k, v, g, beta = contiguous(x.q, x.k, x.v, x.g, x.beta)
    o = torch.empty_like(v)
    BV = min(32, padded(V))
    if N * HV * triton.cdiv(V, BV) < multiprocessors(v.device):
        BV = 16
    with torch.cuda.device_of(q):
        delta_step[(N * HV * triton.cdiv(V, BV),)](
            q=q, k=k, v=v, g=g, beta=beta, state=x.state, o=o, scale=x.scale,
            H=H, HV=HV, K=K, V=V, BK=padded(K), BV=BV, num_warps=4,
        )  # fmt: skip
    return o
