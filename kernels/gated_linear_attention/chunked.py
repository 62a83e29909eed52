"""Gated linear attention in chunks of C tokens: batched matmuls within chunks, a short recurrence over chunks.

With G the running sum of g within a chunk, h the state before it and P the scores of `decays`,

    O  = (exp(G) Q) h + P V
    h' = exp(G_C) h + (exp(G_C - G) K)^T V

(arXiv 2312.06635, section 4).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.checks import state_dtype
from ..shared.chunking import gather, ordered, restored, scatter, segments, step_rows
from ..shared.sequences import Chunks
from .arguments import LinearArguments
from .decays import ChannelDecays, HeadDecays


class _Inputs(NamedTuple):
    """The op's tensor arguments, g always given."""

    q: Tensor  # [B, T, H, K]
    k: Tensor
    v: Tensor  # [B, T, H, V]
    g: Tensor  # [B, T, H, K] or [B, T, H]


def run(x: LinearArguments) -> tuple[Tensor, Tensor]:
    """As the reference; half-precision inputs multiply in float32."""
    inputs = _Inputs(x.q, x.k, x.v, x.q.new_zeros(x.q.shape[:-1]) if x.g is None else x.g)
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
    def forward(ctx: Any, q, k, v, g, initial_state, scale, chunks, recompute):
        inputs = _Inputs(q, k, v, g)
        o, state, kept = _forward(inputs, initial_state, scale, chunks, keep=not recompute)
        ctx.save_for_backward(*inputs, *((initial_state,) if recompute else kept))
        ctx.scale, ctx.chunks, ctx.recompute = scale, chunks, recompute
        return o, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do, dstate):
        q, k, v, g, *kept = ctx.saved_tensors
        inputs = _Inputs(q, k, v, g)
        with torch.autocast(do.device.type, enabled=False):
            if ctx.recompute:
                _, _, kept = _forward(inputs, kept[0], ctx.scale, ctx.chunks, keep=True)
            return *_backward(inputs, kept, ctx.scale, ctx.chunks, do, dstate), None, None, None


class _Operands:
    """The matrices of a segment's chunks, R = chunks * H of each."""

    def __init__(self, inputs: _Inputs, scale: float, chunks: Chunks, start: int, stop: int) -> None:
        dtype = state_dtype(inputs.v.dtype)
        q, k, self.v, g = (gather(chunks, x, start, stop, dtype) for x in inputs)
        self.q, self.k = q.mul_(scale), k
        self.decays = (ChannelDecays if g.ndim == 3 else HeadDecays)(self.q, k, g)
        self.steps = step_rows(chunks, start, stop, inputs.q.shape[2])


def _forward(
    inputs: _Inputs, initial_state: Tensor, scale: float, chunks: Chunks, keep: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """o, the final state and, to keep, each segment's states before its chunks [R, K, V]."""
    n_heads = inputs.q.shape[2]
    state = ordered(initial_state, chunks)
    o = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
    kept = []
    for start, stop in segments(chunks, n_heads):
        x = _Operands(inputs, scale, chunks, start, stop)
        out = torch.bmm(x.decays.scores(), x.v)
        since, until = x.decays.since, x.decays.until
        h = _scan(torch.bmm((until * x.k).mT, x.v), since[:, -1].unsqueeze(-1), state, x.steps)
        scatter(chunks, torch.baddbmm(out, since.mul(x.q), h, out=out), o, start, stop)
        if keep:
            kept.append(h)
    return o, restored(state, chunks, n_heads), kept


def _scan(added: Tensor, decay: Tensor, state: Tensor, steps: list[slice]) -> Tensor:
    """state <- decay * state + added, step by step; overwrites `added` [R, K, V] by the states before, returns it."""
    for rows in steps:
        now = state[: rows.stop - rows.start]
        after = torch.addcmul(added[rows], now, decay[rows])
        added[rows] = now
        now.copy_(after)
    return added


def _backward(
    inputs: _Inputs, kept: list[Tensor], scale: float, chunks: Chunks, do: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    n_heads = inputs.q.shape[2]
    dstate = ordered(dstate, chunks)
    grads = _Inputs(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs))
    for (start, stop), h in zip(reversed(segments(chunks, n_heads)), reversed(kept), strict=True):
        x = _Operands(inputs, scale, chunks, start, stop)
        dout = gather(chunks, do, start, stop, dstate.dtype)
        for grad, out in zip(_input_grads(x, h, dout, dstate, scale), grads, strict=True):
            scatter(chunks, grad, out, start, stop)
    return *grads, restored(dstate, chunks, n_heads)


def _input_grads(x: _Operands, h: Tensor, dout: Tensor, dstate: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Gradients of a segment's q, k, v and g, each [R, C, ...]; takes `dstate` from behind the segment to before it."""
    p, dq, dk = x.decays.scores_backward(torch.bmm(dout, x.v.mT).tril_())
    since, until = x.decays.since, x.decays.until
    dv = torch.bmm(p.mT, dout)
    decay = since[:, -1]  # [R, K or 1]
    dh = _scan(torch.bmm((x.q * since).mT, dout), decay.unsqueeze(-1), dstate, x.steps[::-1])
    dv = torch.baddbmm(dv, x.k * until, dh, out=dv)
    dq_read = torch.bmm(dout, h.mT).mul_(since)
    dk_write = torch.bmm(x.v, dh.mT).mul_(until)
    dq, dk = dq.add_(dq_read).mul_(scale), dk.add_(dk_write)
    dg = x.decays.gate_grad(dq_read.mul_(x.q), dk_write.mul_(x.k), (h * dh).sum(-1).mul_(decay))
    return dq, dk, dv, dg


def gated_linear_attention_flops(K: int, V: int, C: int, gate: str | None) -> float:
    """Forward matmul FLOPs per token and head for chunks of C tokens; `gate` is "channel", "head" or None.

    The scores, P V and the two products with the state.
    """
    scores = K * (C - 1) if gate == "channel" else 2 * C * K
    return scores + 2 * C * V + 4 * K * V
