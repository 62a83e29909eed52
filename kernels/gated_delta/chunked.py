"""The gated delta rule in chunks of C tokens: batched matmuls within chunks, a short recurrence over chunks.

Within a chunk, with G the running sum of g and h the state before the chunk,

    D_ij = exp(G_i - G_j) beta_j   (i >= j)            decay from token j to token i, times j's writing strength
    (I + strict(K K^T * D)) E = V - exp(G) K h         E: what each write corrects, v_t - S'^T k_t
    O    = exp(G) Q h + (Q K^T * D) E
    h'   = exp(G_C) h + (exp(G_C - G) beta K)^T E

(the WY form of DeltaNet, arXiv 2406.06484, with the gate of arXiv 2412.06464). beta sits on the *columns* of the
triangular system. Then dV is the adjoint of E itself, and beta's gradient is <E, dV> / beta, so the backward pass needs
neither v nor any matrix without beta.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.checks import state_dtype
from ..shared.chunking import gather, head_decay, head_decay_grad, ordered, restored, scatter, segments, step_rows
from ..shared.sequences import Chunks
from ..shared.triangular import unit_lower_inverse, unit_lower_inverse_flops
from .arguments import DeltaArguments

MIN_BETA = 1e-25  # stands for beta = 0, so that <E, dV> / beta is its gradient; far below what a state can resolve


class _Inputs(NamedTuple):
    """The op's tensor arguments, g always given."""

    q: Tensor  # [B, T, H, K]
    k: Tensor
    v: Tensor  # [B, T, HV, V]
    g: Tensor  # [B, T, HV]
    beta: Tensor


class Kept(NamedTuple):
    """What backward needs of a segment besides the inputs."""

    inverse: Tensor  # [R, C, C], R = chunks * HV
    e: Tensor  # [R, C, V]
    h: Tensor  # [R, K, V] states before each chunk


def run(x: DeltaArguments) -> tuple[Tensor, Tensor]:
    """As the reference; half-precision inputs multiply in float32."""
    inputs = _Inputs(x.q, x.k, x.v, torch.zeros_like(x.beta) if x.g is None else x.g, x.beta)
    chunks = x.sequences.chunks(x.chunk_size, x.device)
    initial_state = x.initial_state
    if initial_state is None:
        initial_state = x.v.new_zeros(x.state_shape, dtype=state_dtype(x.v.dtype))
    if torch.is_grad_enabled() and any(a.requires_grad for a in (*inputs, initial_state)):
        return _Chunked.apply(*inputs, initial_state, x.scale, chunks, x.recompute)  # type: ignore[return-value]
    o, state, _ = _forward(inputs, initial_state, x.scale, chunks, keep=False)
    return o, state


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, g, beta, initial_state, scale, chunks, recompute):
        inputs = _Inputs(q, k, v, g, beta)
        o, state, kept = _forward(inputs, initial_state, scale, chunks, keep=not recompute)
        ctx.save_for_backward(*inputs, *((initial_state,) if recompute else (x for segment in kept for x in segment)))
        ctx.scale, ctx.chunks, ctx.recompute = scale, chunks, recompute
        return o, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do, dstate):
        q, k, v, g, beta, *saved = ctx.saved_tensors
        inputs = _Inputs(q, k, v, g, beta)
        with torch.autocast(do.device.type, enabled=False):
            if ctx.recompute:
                _, _, kept = _forward(inputs, saved[0], ctx.scale, ctx.chunks, keep=True)
            else:
                kept = [Kept(*saved[i : i + 3]) for i in range(0, len(saved), 3)]
            return *_backward(inputs, kept, ctx.scale, ctx.chunks, do, dstate), None, None, None


class _Operands:
    """The matrices of a segment's chunks. R = chunks * HV matrices per value head, chunks * H per key head."""

    def __init__(self, inputs: _Inputs, scale: float, chunks: Chunks, start: int, stop: int) -> None:
        n_heads, n_value_heads = inputs.q.shape[2], inputs.v.shape[2]
        self.group = n_value_heads // n_heads
        dtype = state_dtype(inputs.v.dtype)
        self.q = gather(chunks, inputs.q, start, stop, dtype).mul_(scale)  # [chunks * H, C, K]
        self.k = gather(chunks, inputs.k, start, stop, dtype)
        self.qk = torch.bmm(self.q, self.k.mT)
        self.kk = torch.bmm(self.k, self.k.mT)
        beta = gather(chunks, inputs.beta, start, stop, dtype)
        self.beta = torch.where(beta < MIN_BETA, MIN_BETA, beta).unsqueeze(-1)  # [R, C, 1]
        between, self.grown, left = head_decay(gather(chunks, inputs.g, start, stop, torch.float64), dtype)
        self.decay = between.mul_(self.beta.mT)  # D where i >= j
        self.written = left * self.beta  # exp(G_C - G) beta [R, C, 1]
        self.chunk_decay = self.grown[:, -1:]  # [R, 1, 1]
        self.steps = step_rows(chunks, start, stop, n_value_heads)

    def weigh(self, x: Tensor, weight: Tensor) -> Tensor:
        """x per key head [chunks * H, C, *] times a weight per value head [R, C, *] -> [R, C, *]."""
        return (x.unsqueeze(1) * weight.unflatten(0, (-1, self.group))).flatten(0, 1)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """<x, y> over channels of x per key head and y per value head: [R, C]."""
        return self.weigh(x, y).sum(-1)

    def sum_group(self, x: Tensor) -> Tensor:
        """Per value head [R, ...] to per key head [chunks * H, ...]."""
        return x if self.group == 1 else x.unflatten(0, (-1, self.group)).sum(1)


def _forward(
    inputs: _Inputs, initial_state: Tensor, scale: float, chunks: Chunks, keep: bool
) -> tuple[Tensor, Tensor, list[Kept]]:
    n_value_heads = inputs.v.shape[2]
    state = ordered(initial_state, chunks)
    o = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
    kept = []
    for start, stop in segments(chunks, n_value_heads):
        x = _Operands(inputs, scale, chunks, start, stop)
        inverse = unit_lower_inverse(x.weigh(x.kk, x.decay).tril_(-1))
        e, h = _scan(x, inverse, gather(chunks, inputs.v, start, stop, state.dtype), state)
        out = torch.bmm(x.weigh(x.qk, x.decay).tril_(), e)
        scatter(chunks, torch.baddbmm(out, x.weigh(x.q, x.grown), h, out=out), o, start, stop)
        if keep:
            kept.append(Kept(inverse, e, h))
    return o, restored(state, chunks, n_value_heads), kept


def _scan(x: _Operands, inverse: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the chunk recurrence; overwrites v [R, C, V] by E and `state` [N*HV, K, V]; returns E and h [R, K, V]."""
    read, write = x.weigh(x.k, x.grown), x.weigh(x.k, x.written).mT
    h = state.new_empty(len(v), *state.shape[1:])
    for rows in x.steps:
        now = state[: rows.stop - rows.start]
        before = h[rows].copy_(now)
        error = torch.baddbmm(v[rows], read[rows], before, alpha=-1)
        e = torch.bmm(inverse[rows], error, out=v[rows])
        torch.baddbmm(now.mul_(x.chunk_decay[rows]), write[rows], e, out=now)
    return v, h


def _backward(
    inputs: _Inputs, kept: list[Kept], scale: float, chunks: Chunks, do: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    n_value_heads = inputs.v.shape[2]
    dstate = ordered(dstate, chunks)
    grads = _Inputs(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs))
    for (start, stop), saved in zip(reversed(segments(chunks, n_value_heads)), reversed(kept), strict=True):
        x = _Operands(inputs, scale, chunks, start, stop)
        dout = gather(chunks, do, start, stop, dstate.dtype)
        dv, dh = _scan_backward(x, saved, dout, dstate)
        for grad, out in zip(_input_grads(x, saved, dout, dv, dh, scale), grads, strict=True):
            scatter(chunks, grad, out, start, stop)
    return *grads, restored(dstate, chunks, n_value_heads)


def _scan_backward(x: _Operands, saved: Kept, dout: Tensor, dstate: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence in reverse, updating `dstate` in place; returns dV [R, C, V] and the adjoints of h' [R, K, V]."""
    dv = torch.bmm(x.weigh(x.qk, x.decay).tril_().mT, dout)  # E's adjoint first, V's in the end
    from_o = torch.bmm(x.weigh(x.q, x.grown).mT, dout)
    read, write = x.weigh(x.k, x.grown).mT, x.weigh(x.k, x.written)
    dh = torch.empty_like(from_o)
    for rows in reversed(x.steps):
        now = dstate[: rows.stop - rows.start]
        after = dh[rows].copy_(now)
        de = torch.baddbmm(dv[rows], write[rows], after)
        torch.bmm(saved.inverse[rows].mT, de, out=dv[rows])
        torch.addcmul(from_o[rows], now, x.chunk_decay[rows], out=now)
        torch.baddbmm(now, read[rows], dv[rows], alpha=-1, out=now)
    return dv, dh


def _input_grads(x: _Operands, saved: Kept, dout: Tensor, dv: Tensor, dh: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Gradients of a segment's q, k (per key head), v, g and beta (per value head), each [*, C, ...]."""
    e, h = saved.e, saved.h
    e64 = e.double()  # dg adds up what writes do later, which cancels where keys are overwritten: products in float64
    # through states: read by q and by k's error (subtracted), written by k
    dq = torch.bmm(dout, h.mT).mul_(x.grown)
    dk_read = torch.bmm(dv, h.mT).mul_(x.grown)
    dk_write = torch.bmm(e64, dh.double().mT).to(e.dtype).mul_(x.written)
    read = x.dot(x.q, dq) - x.dot(x.k, dk_read)
    read[:, -1] += (h * dh).sum((-2, -1)).mul_(x.chunk_decay[:, 0, 0])
    written = x.dot(x.k, dk_write)
    # within the chunk
    dqk = torch.bmm(dout.double(), e64.mT).to(e.dtype).mul_(x.decay).tril_()
    dkk = torch.bmm(dv.double(), e64.mT).to(e.dtype).mul_(x.decay).tril_(-1)  # subtracted
    dg = head_decay_grad(x.weigh(x.qk, dqk).tril_(-1).sub_(x.weigh(x.kk, dkk)), read, written)
    dqk, dkk = x.sum_group(dqk), x.sum_group(dkk)
    dq, dk = x.sum_group(dq), x.sum_group(dk_write.sub_(dk_read))
    dq = torch.baddbmm(dq, dqk, x.k, out=dq).mul_(scale)
    dk = torch.baddbmm(dk, dqk.mT, x.q, out=dk)
    dk = torch.baddbmm(dk, dkk + dkk.mT, x.k, alpha=-1, out=dk)
    dbeta = (e * dv).sum(-1).div_(x.beta.squeeze(-1))
    return dq, dk, dv, dg, dbeta


def gated_delta_rule_flops(K: int, V: int, C: int, group: int = 1) -> float:
    """Forward matmul FLOPs per token and value head for chunks of C tokens; `group` value heads share a key head.

    Q K^T and K K^T (per key head), the triangular inverse, E, the products with the state, O.
    """
    return 4 * C * K / group + unit_lower_inverse_flops(C) / C + 4 * C * V + 6 * K * V
