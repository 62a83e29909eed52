"""The gated scan in Triton: one launch forward, one backward, tile after tile of tokens with the state in registers.

Backward is the same recurrence from the last token to the first: with c_t the adjoint of h_t,

    c_t = dh_t + exp(g_{t+1}) c_{t+1};   dx_t = c_t;   dg_t = exp(g_t) h_{t-1} c_t

so both directions scan "positions": token t forward, token T-1-t with the gate of the token behind it backward. Where
sequences and channels are too few to fill the device, sequences are cut into segments: a launch before finds each
segment's last state from 0 and its total decay, from which every segment then starts by itself.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.sequences import Sequences
from ..shared.triton_common import check_inputs, contiguous, kernel, multiprocessors, padded, tables
from .arguments import ScanArguments

TILE = 32  # tokens; a tile of 32 x 32 is 32 registers per tensor and thread of one warp
LEAST_SEGMENT = 4 * TILE


@triton.jit
def _after(decay, x, next_decay, next_x):
    """The step h -> decay h + x, then the next one, as one step."""
    return decay * next_decay, next_x + next_decay * x


@triton.jit
def _tile(x, g, token, length, position, channel, D: tl.constexpr, TILE: tl.constexpr, REVERSE: tl.constexpr):
    """x and decay [TILE, channels] from a position of a sequence on, where in memory, and which of it is there.

    Behind the end of the sequence decays are 1 and x is 0.
    """
    row = tl.arange(0, TILE)[:, None]
    there = (row < length - position) & (channel < D)[None, :]
    if REVERSE:
        at = (token + length - 1 - position) * D + (channel[None, :] - row * D)
        g_at, g_there = at + D, there & (row + position > 0)
    else:
        at = (token + position) * D + (row * D + channel[None, :])
        g_at, g_there = at, there
    b_x = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    b_g = tl.load(g + g_at, mask=g_there, other=0.0).to(tl.float32)
    return b_x, tl.where(b_g > 0, float("nan"), tl.exp(b_g)), at, there  # above 0 there is no decay


@triton.jit
def _last(x, TILE: tl.constexpr):
    """Last row of x [TILE, channels]."""
    return tl.sum(tl.where((tl.arange(0, TILE) == TILE - 1)[:, None], x, 0.0), 0)


@triton.jit
def _program(sequence, n_segments, D: tl.constexpr, BD: tl.constexpr):
    """Sequence, segment and channels of this program."""
    n_blocks: tl.constexpr = (D + BD - 1) // BD
    channel = tl.program_id(0) % n_blocks * BD + tl.arange(0, BD)
    segment = tl.program_id(0) // n_blocks % n_segments
    n = (tl.program_id(0) // n_blocks // n_segments).to(tl.int64)
    return n, segment, channel, tl.load(sequence + n * 3).to(tl.int64), tl.load(sequence + n * 3 + 1)


@triton.jit
def _start(state, ends, decays, n, segment, n_segments, channel, D: tl.constexpr, BD: tl.constexpr):
    """State before a segment [channels]."""
    carry = tl.zeros([BD], tl.float32)
    if state is not None:
        carry = tl.load(state + n * D + channel, mask=channel < D, other=0.0)
    if ends is not None:
        for before in range(0, segment):
            at = (n * n_segments + before) * D + channel
            decay = tl.load(decays + at, mask=channel < D, other=0.0)
            carry = decay * carry + tl.load(ends + at, mask=channel < D, other=0.0)
    return carry


@kernel("gated_scan", do_not_specialize=["n_segments"])
def scan_segment_ends(
    x, g, ends, decays, sequence, n_segments, segment_size,
    D: tl.constexpr, TILE: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Last state from 0, and total decay, of each segment: ends, decays [N, n_segments, D] float32."""
    n, segment, channel, token, length = _program(sequence, n_segments, D, BD)  # type: ignore[misc]
    stop = tl.minimum(length, (segment + 1) * segment_size)
    carry = tl.zeros([BD], tl.float32)
    decay = tl.full([BD], 1.0, tl.float32)
    for first in range(segment * segment_size, stop, TILE):
        b_x, b_decay, _, _ = _tile(x, g, token, length, first, channel, D, TILE, REVERSE)
        b_decay, b_x = tl.associative_scan((b_decay, b_x), 0, _after)
        carry = _last(b_x + b_decay * carry[None, :], TILE)
        decay *= _last(b_decay, TILE)
    at = (n * n_segments + segment) * D + channel
    tl.store(ends + at, carry, mask=channel < D)
    tl.store(decays + at, decay, mask=channel < D)


@kernel("gated_scan", do_not_specialize=["n_segments"])
def scan_forward(
    x, g, initial_state, ends, decays, h, final_state, sequence, n_segments, segment_size,
    D: tl.constexpr, TILE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """h of one segment and block of channels; the last segment also writes the final state."""
    n, segment, channel, token, length = _program(sequence, n_segments, D, BD)  # type: ignore[misc]
    stop = tl.minimum(length, (segment + 1) * segment_size)
    carry = _start(initial_state, ends, decays, n, segment, n_segments, channel, D, BD)
    for first in range(segment * segment_size, stop, TILE):
        b_x, b_decay, at, there = _tile(x, g, token, length, first, channel, D, TILE, False)
        b_decay, b_x = tl.associative_scan((b_decay, b_x), 0, _after)
        b_h = b_x + b_decay * carry[None, :]
        tl.store(h + at, b_h.to(h.dtype.element_ty), mask=there)
        carry = _last(b_h, TILE)
    if segment == tl.maximum(tl.cdiv(length, segment_size), 1) - 1:
        tl.store(final_state + n * D + channel, carry, mask=channel < D)


@kernel("gated_scan", do_not_specialize=["n_segments"])
def scan_backward(
    dh, g, h, initial_state, dfinal, ends, decays, dx, dg, dinitial, sequence, n_segments, segment_size,
    D: tl.constexpr, TILE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dx and dg of one segment, counted from the end, and block of channels; the last one also writes dinitial."""
    n, segment, channel, token, length = _program(sequence, n_segments, D, BD)  # type: ignore[misc]
    stop = tl.minimum(length, (segment + 1) * segment_size)
    initial = _start(initial_state, None, None, n, segment, n_segments, channel, D, BD)
    carry = _start(dfinal, ends, decays, n, segment, n_segments, channel, D, BD)
    for first in range(segment * segment_size, stop, TILE):
        b_dh, b_decay, at, there = _tile(dh, g, token, length, first, channel, D, TILE, True)
        b_decay, b_dh = tl.associative_scan((b_decay, b_dh), 0, _after)
        b_dx = b_dh + b_decay * carry[None, :]
        tl.store(dx + at, b_dx.to(dx.dtype.element_ty), mask=there)
        not_first = (tl.arange(0, TILE) < length - 1 - first)[:, None]
        before = tl.load(h + at - D, mask=there & not_first, other=0.0).to(tl.float32)
        before = tl.where(not_first, before, initial[None, :])
        b_g = tl.load(g + at, mask=there, other=0.0).to(tl.float32)
        tl.store(dg + at, (tl.exp(b_g) * before * b_dx).to(dg.dtype.element_ty), mask=there)
        carry = _last(b_dx, TILE)
    if dinitial is not None:  # noqa: SIM102 - one is decided when compiling
        if segment == tl.maximum(tl.cdiv(length, segment_size), 1) - 1:
            first_g = tl.load(g + token * D + channel, mask=(channel < D) & (length > 0), other=0.0).to(tl.float32)
            tl.store(dinitial + n * D + channel, tl.exp(first_g) * carry, mask=channel < D)


def _ceil(a: int, b: int) -> int:
    return math.ceil(a / b)


class Launch(NamedTuple):
    """How one layout's launches are cut into programs."""

    sequence: Tensor  # int32 [N, 3], `Tables.sequence`
    n_sequences: int
    D: int
    n_segments: int
    segment_size: int
    BD: int

    @property
    def grid(self) -> tuple[int]:
        return (self.n_sequences * self.n_segments * _ceil(self.D, self.BD),)

    def segment_ends(self, x: Tensor, g: Tensor, reverse: bool) -> tuple[Tensor | None, Tensor | None]:
        if self.n_segments == 1:
            return None, None
        ends, decays = x.new_empty(2, self.n_sequences, self.n_segments, self.D, dtype=torch.float32).unbind()
        self.run(scan_segment_ends, x=x, g=g, ends=ends, decays=decays, REVERSE=reverse)
        return ends, decays

    def run(self, kernel: Any, **arguments: Any) -> None:
        kernel[self.grid](
            **arguments, sequence=self.sequence, n_segments=self.n_segments, segment_size=self.segment_size,
            D=self.D, TILE=TILE, BD=self.BD, num_warps=1,
        )  # fmt: skip


def _plan(x: Tensor, sequences: Sequences) -> Launch:
    """Segments only where whole sequences make less than half of the wanted programs, which are 4 per processor."""
    D, longest = math.prod(x.shape[2:]), sequences.longest
    BD = min(padded(D), 32)
    programs, wanted = len(sequences) * _ceil(D, BD), 4 * multiprocessors(x.device)
    n_segments = 1
    if 2 * programs < wanted:
        n_segments = max(1, min(_ceil(wanted, programs), longest // LEAST_SEGMENT))
    segment_size = _ceil(_ceil(longest, n_segments), TILE) * TILE
    sequence = tables(sequences, TILE, x.device).sequence
    return Launch(sequence, len(sequences), D, _ceil(longest, segment_size), segment_size, BD)


def run(arguments: ScanArguments) -> tuple[Tensor, Tensor]:
    """As the reference, for float32, bfloat16 and float16; the state is float32."""
    check_inputs("gated_scan", arguments.x)
    plan = _plan(arguments.x, arguments.sequences)
    x, g, initial_state = contiguous(arguments.x, arguments.g, arguments.initial_state)
    with torch.cuda.device_of(x):
        return _GatedScan.apply(x, g, initial_state, plan)  # type: ignore[return-value]


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, g, initial_state, plan: Launch):
        ctx.set_materialize_grads(False)
        h = torch.empty_like(x)
        final_state = x.new_empty(plan.n_sequences, *x.shape[2:], dtype=torch.float32)
        ends, decays = plan.segment_ends(x, g, False)
        plan.run(
            scan_forward, x=x, g=g, initial_state=initial_state, ends=ends, decays=decays, h=h, final_state=final_state
        )
        ctx.save_for_backward(g, h, initial_state)
        ctx.plan = plan
        return h, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh, dfinal):
        g, h, initial_state = ctx.saved_tensors
        plan: Launch = ctx.plan
        dh, dfinal = contiguous(torch.zeros_like(h) if dh is None else dh, dfinal)
        dx, dg = torch.empty_like(h), torch.empty_like(g)
        dinitial = torch.empty_like(initial_state) if ctx.needs_input_grad[2] else None
        ends, decays = plan.segment_ends(dh, g, True)
        plan.run(
            scan_backward, dh=dh, g=g, h=h, initial_state=initial_state, dfinal=dfinal, ends=ends, decays=decays,
            dx=dx, dg=dg, dinitial=dinitial,
        )  # fmt: skip
        return dx, dg, dinitial, None
