"""The gated scan in blocks of time that run side by side: few large element-wise steps instead of many small ones.

Every block is scanned from 0 for what it hands on, then states are carried from block to block, then every block is
scanned again from its own. Each pass is the recurrence itself, so the result is as exact as the recurrence's. The
gradient of h is the same scan in reverse, with the next token's decay: dh_t = do_t + exp(g_{t+1}) dh_{t+1}; then
dx = dh and dg_t = dh_t exp(g_t) h_{t-1}. A document's first token has a decay of 0 and its initial state added to it.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.checks import state_dtype
from ..shared.sequences import Sequences
from .arguments import ScanArguments

BLOCKS = 16  # the fastest of 1 .. 64 for 512 to 4096 tokens of 64 to 1024 channels


class Ends(NamedTuple):
    """Where the documents that have tokens begin and end in [B, T], and which of the N sequences they are."""

    row: Tensor
    first: Tensor
    last: Tensor
    member: Tensor


def run(arguments: ScanArguments) -> tuple[Tensor, Tensor]:
    """As the reference; half-precision inputs are scanned in float32."""
    x, g, initial_state, sequences = arguments
    if initial_state is None:
        initial_state = x.new_zeros(arguments.state_shape, dtype=state_dtype(x.dtype))
    ends = sequences.once(_ends, x.device)
    h, state = _ChunkedScan.apply(x.flatten(2), g.flatten(2), initial_state.flatten(1), ends)  # type: ignore[misc]
    return h.view(x.shape), state.view(initial_state.shape)


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, g, initial_state, ends):
        decay, first_decay = _decays(g, ends, initial_state.dtype)
        inputs = _padded(x, initial_state.dtype)
        inputs[ends.row, ends.first] += first_decay * initial_state[ends.member]
        h = _scan(inputs, decay[:, :-1])[:, : x.shape[1]].contiguous()
        state = initial_state.clone()
        state[ends.member] = h[ends.row, ends.last]
        ctx.save_for_backward(g, h, initial_state)
        ctx.ends, ctx.dtype = ends, x.dtype
        return h.to(x.dtype), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do, dstate):
        g, h, initial_state = ctx.saved_tensors
        row, first, last, member = ctx.ends
        decay, first_decay = _decays(g, ctx.ends, h.dtype)
        dh = _padded(do, h.dtype)
        dh[row, last] += dstate[member]
        dh = _scan(dh, decay[:, 1:], reverse=True)[:, : h.shape[1]].contiguous()
        dg = torch.empty_like(h)
        torch.mul(dh[:, 1:], h[:, :-1], out=dg[:, 1:])
        dg *= decay[:, : h.shape[1]]
        dinitial = dstate.clone()
        dinitial[member] = first_decay * dh[row, first]
        dg[row, first] = dinitial[member] * initial_state[member]
        return dh.to(ctx.dtype), dg.to(g.dtype), dinitial, None


def _scan(x: Tensor, decay: Tensor, reverse: bool = False) -> Tensor:
    """h_t = decay_t h_{t-1} + x_t from the left, or h_t = decay_t h_{t+1} + x_t from the right. x: as `_padded`."""
    n_blocks = min(BLOCKS, x.shape[1])
    x, decay = (a.unflatten(1, (n_blocks, -1)) for a in (x, decay))  # [B, blocks, size, D]
    h = torch.empty_like(x)
    direction = -1 if reverse else 1
    xs, decays, outputs = (a.unbind(2)[::direction] for a in (x, decay, h))  # [B, blocks, D] each
    state, total = xs[0].clone(), decays[0].clone()
    for x_t, decay_t in zip(xs[1:], decays[1:], strict=True):
        torch.addcmul(x_t, decay_t, state, out=state)
        total *= decay_t
    carry = torch.zeros_like(state)
    blocks = range(n_blocks)[::direction]
    for block, following in itertools.pairwise(blocks):
        torch.addcmul(state[:, block], total[:, block], carry[:, block], out=carry[:, following])
    for x_t, decay_t, out in zip(xs, decays, outputs, strict=True):
        carry = torch.addcmul(x_t, decay_t, carry, out=out)
    return h.flatten(1, 2)


def _padded(x: Tensor, dtype: torch.dtype, extra: int = 0) -> Tensor:
    """A copy of x [B, T, D] with zeros behind it up to whole blocks, and `extra` tokens more."""
    B, T, D = x.shape
    n_blocks = min(BLOCKS, T)
    tokens = -(-T // n_blocks) * n_blocks
    padded = x.new_empty(B, tokens + extra, D, dtype=dtype)
    padded[:, :T] = x
    padded[:, T:] = 0
    return padded


def _decays(g: Tensor, ends: Ends, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """exp(g), one token longer than `_padded`, 0 at the first token of a document; and what stood there [N', D]."""
    decay = _padded(g, dtype, extra=1)
    decay[:, : g.shape[1]].exp_()
    first = decay[ends.row, ends.first]
    decay[ends.row, ends.first] = 0
    return decay, first


def _ends(sequences: Sequences, device: torch.device) -> Ends:
    if sequences.bounds is None:
        ends = [(n, 0, sequences.tokens - 1, n) for n in range(sequences.batch)]
    else:
        pairs = enumerate(itertools.pairwise(sequences.bounds))
        ends = [(0, a, b - 1, n) for n, (a, b) in pairs if b > a]
    return Ends(*torch.tensor(ends, device=device).unbind(1))
