"""Which keys a query sees, and what that takes: how to attend, what to remember, how many keys and slots.

Positions count within a sequence. Everything that depends on positions alone is made once for all layers of a call.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.banded_attention import banded_attention
from ....kernels.head_routed_attention import head_routed_attention, head_routed_attention_step
from ....kernels.shared.sequences import HOST
from ....kernels.softmax_attention import causal_attention, grouped_attention
from ...parts.context import Context
from .heads import HeadGate
from .options import AttentionConfig
from .state import KVState


class SinkWindow(NamedTuple):
    """The first `sink` tokens of a sequence and the last `window` ones up to the query; None is all."""

    sink: int
    window: int | None


class Causal:
    """A query sees every key of its sequence up to its own. Slot p holds the token at position p."""

    span: SinkWindow = SinkWindow(0, None)
    most_slots: int | None = None
    """That are ever used; None: one for each token."""

    def keys(self, T: int) -> int:
        """Keys computed per query in a sequence of T tokens."""
        return T

    def slots(self, T: int) -> int:
        """Tokens remembered of T."""
        return T

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, gate: HeadGate | None, sequences: Context, dropout: float
    ) -> Tensor:
        """Over the tokens of this call alone, which begin their sequences."""
        if gate is not None and not gate.everywhere:
            sink = None if self.span.window is None else self.span.sink
            return head_routed_attention(q, k, v, gate.weight, sink=sink, window=self.span.window, sequences=sequences)
        if dropout:
            o = causal_attention(q, k, v, sequences=sequences, **self.span._asdict(), dropout=dropout)
        else:
            o = self._all_heads(q, k, v, sequences)
        return o if gate is None else gate.times(o)

    def _all_heads(self, q: Tensor, k: Tensor, v: Tensor, sequences: Context) -> Tensor:
        if _by_tiles(q):
            return banded_attention(q, k, v, sink=0, window=None, sequences=sequences)
        return causal_attention(q, k, v, sequences=sequences)

    def remember(self, state: KVState, k: Tensor, v: Tensor, sequences: Context) -> None:
        """Store this call's keys and values [B, T, H_kv, D]."""
        start = sequences.same_past
        if start is not None:
            return state.write_rows(start, k, v)
        kept = sequences.once(_kept, self.span)
        state.write(kept.end, kept.row, kept.slot, k.flatten(0, 1), v.flatten(0, 1))

    def continued(
        self, state: KVState, q: Tensor, k: Tensor, v: Tensor, gate: HeadGate | None, sequences: Context
    ) -> Tensor:
        """Over what the state holds and the tokens of this call, which are remembered."""
        if torch.is_grad_enabled() or not self._in_place(sequences):
            o = self._beside(state, q, k, v, sequences)
            return o if gate is None else gate.times(o)
        self.remember(state, k, v, sequences)
        keys, values = (x.to(q.dtype) for x in state.held())
        one = sequences.tokens == 1 and not sequences.packed
        seen = None  # all of them, where every row has one token after the same past
        if not one or sequences.same_past is None:
            seen = sequences.once(_seen_after, self.span, keys.shape[1])
        if one and gate is not None and not gate.everywhere:
            seen = None if seen is None else seen[:, 0]
            return head_routed_attention_step(q[:, 0], keys, values, gate.weight[:, 0], seen=seen)[:, None]
        if seen is None:
            o = grouped_attention(q, keys, values)
        else:
            rows = sequences.once(_rows)
            o = rows.gathered(grouped_attention(rows.spread(q), keys, values, seen))
        return o if gate is None else gate.times(o)

    def _in_place(self, sequences: Context) -> bool:
        """Whether the call's keys can be written first, so that queries see all they need in the state itself."""
        return True

    def _beside(self, state: KVState, q: Tensor, k: Tensor, v: Tensor, sequences: Context) -> Tensor:
        """The same with the call's keys behind a copy of the state: gradients flow, and a ring loses nothing."""
        rows = sequences.once(_rows)
        pairs = zip(state.held(), (k, v), strict=True)
        keys, values = (torch.cat((held.to(q.dtype), rows.spread(new)), 1) for held, new in pairs)
        seen = sequences.once(_seen_beside, self.span, state.used)
        o = rows.gathered(grouped_attention(rows.spread(q), keys, values, seen))
        self.remember(state, k.detach(), v.detach(), sequences)
        return o


class Banded(Causal):
    """A query sees the sink, the first tokens of its sequence, and the last `window` ones, its own included. A sliding
    window has a sink of 0. Slot p holds position p of the sink, and behind it a ring the others: p - sink mod window.
    """

    def __init__(self, sink: int, window: int):
        self.span = SinkWindow(sink, window)
        self.most_slots: int = sink + window

    def keys(self, T: int) -> int:
        return min(T, self.most_slots)

    def slots(self, T: int) -> int:
        return min(T, self.most_slots)

    def _all_heads(self, q: Tensor, k: Tensor, v: Tensor, sequences: Context) -> Tensor:
        if self.most_slots >= sequences.longest:
            return super()._all_heads(q, k, v, sequences)
        return banded_attention(q, k, v, **self.span._asdict(), sequences=sequences)

    def remember(self, state: KVState, k: Tensor, v: Tensor, sequences: Context) -> None:
        kept = sequences.once(_kept, self.span)
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        if kept.token is not None:  # those between the sink and the last `window` have no slot any more
            k, v = k.index_select(0, kept.token), v.index_select(0, kept.token)
        state.write(kept.end, kept.row, kept.slot, k, v)

    def _in_place(self, sequences: Context) -> bool:
        return sequences.single  # several would overwrite what the first of them still see


def _by_tiles(q: Tensor) -> bool:
    """Whether dense causal attention is faster by tiles of our own: on a CPU, but for half precision, which PyTorch
    multiplies as it is, and for traced programs, in which the gradient of an operator runs its forward again."""
    return q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


def visible_of(options: AttentionConfig) -> Causal:
    """What the options ask for."""
    if options.mask is not None:
        return Banded(options.mask.sink, options.mask.window)
    return Causal() if options.window is None else Banded(0, options.window)


def _on_host(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=HOST)


class _Kept(NamedTuple):
    """Where the tokens of a call go that have a slot: those that will not be overwritten within the call."""

    token: Tensor | None  # which of the flattened tokens [M]; None is all
    row: Tensor  # their sequences [M]
    slot: Tensor
    end: int  # above all slots


def _kept(sequences: Context, span: SinkWindow) -> _Kept:
    lengths, past = _on_host(sequences.lengths), _on_host(sequences.past)
    row = _on_host(range(len(sequences))).repeat_interleave(lengths)
    start = _on_host(sequences.starts[: len(sequences)])
    position = torch.arange(len(row), device=HOST) - start[row] + past[row]
    end = max((a + b for a, b in zip(sequences.past, sequences.lengths, strict=True)), default=0)
    sink, window = span
    if window is None:
        return _Kept(None, row.to(sequences.device), position.to(sequences.device), end)
    token = ((position < sink) | (position >= (past + lengths)[row] - window)).nonzero().squeeze(1)
    chosen = None if len(token) == len(row) else token.to(sequences.device)
    row, position = row[token].to(sequences.device), position[token]
    slot = torch.where(position < sink, position, sink + (position - sink) % window).to(sequences.device)
    return _Kept(chosen, row, slot, min(end, sink + window))


class _Rows(NamedTuple):
    """The tokens of a call as right-padded rows [N, T_max], where they lie packed; else as they are."""

    position: Tensor  # [N, T_max], -1 where a row is empty
    slot: Tensor | None  # of each token in the flattened rows; None if nothing has to be laid out

    def spread(self, x: Tensor) -> Tensor:
        """[1, sum of lengths, ...] -> [N, T_max, ...]."""
        if self.slot is None:
            return x
        n, width = self.position.shape
        return x.new_zeros(n * width, *x.shape[2:]).index_copy_(0, self.slot, x[0]).unflatten(0, (n, width))

    def gathered(self, x: Tensor) -> Tensor:
        """The way back."""
        return x if self.slot is None else x.flatten(0, 1).index_select(0, self.slot)[None]


def _rows(sequences: Context) -> _Rows:
    if not sequences.packed:
        return _Rows(sequences.positions.expand(len(sequences), -1), None)
    width = sequences.longest
    lengths, past = _on_host(sequences.lengths)[:, None], _on_host(sequences.past)[:, None]
    column = torch.arange(width, device=HOST)
    filled = column < lengths
    position = torch.where(filled, past + column, -1)
    return _Rows(position.to(sequences.device), filled.flatten().nonzero().squeeze(1).to(sequences.device))


def _seen(query: Tensor, key: Tensor, span: SinkWindow) -> Tensor:
    """[N, T, S] for positions of queries [N, T] and keys [N or 1, S], negative where there is none.

    An empty query sees anything: a softmax over nothing is NaN.
    """
    query, key = query[..., None], key[:, None]
    seen = (key >= 0) & (key <= query)
    if span.window is not None:
        seen &= (query - key < span.window) | (key < span.sink)
    return seen | (query < 0)


def _held(sequences: Context, seen: tuple[int, ...], span: SinkWindow, slots: int) -> Tensor:
    """Position held by each slot [N, slots] after `seen` tokens of each sequence; negative where it is empty."""
    slot = torch.arange(slots, device=sequences.device)
    last = torch.tensor(seen, device=sequences.device)[:, None] - 1
    held = torch.where(slot <= last, slot, -1)
    if span.window is None:
        return held
    turned = last - (last - slot) % span.window  # of the ring's tokens the last one whose place this is
    return torch.where(slot < span.sink, held, torch.where(turned < span.sink, -1, turned))


def _seen_after(sequences: Context, span: SinkWindow, slots: int) -> Tensor:
    """By the call's queries, in the slots, after its keys were written."""
    seen = tuple(past + length for past, length in zip(sequences.past, sequences.lengths, strict=True))
    return _seen(sequences.once(_rows).position, _held(sequences, seen, span, slots), span)


def _seen_beside(sequences: Context, span: SinkWindow, slots: int) -> Tensor:
    """By the call's queries, in the slots before the call and in its keys behind them."""
    new = sequences.once(_rows).position
    return _seen(new, torch.cat((_held(sequences, sequences.past, span, slots), new), 1), span)
