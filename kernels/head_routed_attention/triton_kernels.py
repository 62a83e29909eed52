"""Head-routed attention: the active (token, head) pairs of each sequence and key head in order, and attention of those.

A pair is a number t * G + i, of query head i of the key head's G at token t of the sequence. `order` [H_kv, B * T * G]
int32 holds each sequence's pairs, key head by key head: the active ones first, by token, then the others. So a tile of
rows has all heads of a group and about as many tokens as it needs; rows behind the active ones are answered with 0, and
no output is written twice. `count` [N, H_kv] int32: active pairs of a sequence. `before` [H_kv, B * T] int32: those of
the tokens before a token, which is the first row that sees its key.

`tile` int32 [n_tiles, 4]: first token of a sequence in [B * T], its length, its number, the tile's first row or key.
`band` int32 [H_kv, 2]: sink and window; None is all keys. X_step: elements from one batch row, token and head of X to
the next; outputs are dense. n_tokens: B * T.
"""

import triton.language as tl

from ..shared.triton_common import jit, kernel
from ..shared.triton_row_attention import attend, key_gradients, load_keys, query_gradient, reach


@kernel("head_routed_attention", do_not_specialize=["T", "n_tokens"])
def routed_order(
    gate, order, count, before, sequence, gate_step, T, n_tokens, H: tl.constexpr, HK: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: one sequence and key head, BLOCK pairs after the other."""
    G: tl.constexpr = H // HK
    n = tl.program_id(0) // HK
    head = tl.program_id(0) % HK
    start = tl.load(sequence + n * 3)
    n_pairs = tl.load(sequence + n * 3 + 1) * G
    gate = _begin(gate, start, head * G, gate_step, T)
    order += _packed(start, head, n_tokens) * G
    before += _packed(start, head, n_tokens)
    active = 0
    for first in range(0, n_pairs, BLOCK):
        pair = first + tl.arange(0, BLOCK)
        there = pair < n_pairs
        weight = tl.load(gate + _offset(pair, gate_step, G), mask=there, other=0.0)
        on = (weight.to(tl.float32) != 0).to(tl.int32)
        earlier = active + tl.cumsum(on, 0) - on
        tl.store(order + tl.where(on > 0, earlier, n_pairs - 1 - (pair - earlier)), pair, mask=there)
        tl.store(before + pair // G, earlier, mask=there & (pair % G == 0))
        active += tl.sum(on, 0)
    tl.store(count + n * HK + head, active)


@jit
def _begin(x, start, head, step, T):
    """Where x [B, T, heads, ...] has a sequence's first token of a head."""
    return x + (start // T).to(tl.int64) * step[0] + (start % T).to(tl.int64) * step[1] + head.to(tl.int64) * step[2]


@jit
def _offset(pair, step, G: tl.constexpr):
    """From there to the pairs."""
    return (pair // G).to(tl.int64) * step[1] + (pair % G).to(tl.int64) * step[2]


@jit
def _packed(start, head, n_tokens):
    """Where [H_kv, B * T] has a sequence's first token of a head."""
    return head.to(tl.int64) * n_tokens + start


@jit
def _tile(tile, count, HK: tl.constexpr):
    """This program's key head, its sequence's first token, length and number of active pairs, its first row or key."""
    tile += tl.program_id(0) // HK * 4
    head = tl.program_id(0) % HK
    return head, tl.load(tile), tl.load(tile + 1), tl.load(count + tl.load(tile + 2) * HK + head), tl.load(tile + 3)


@jit
def _rows(order, first, length, n_active, G: tl.constexpr, BM: tl.constexpr):
    """A tile's pairs, which of them there are, which are active, their tokens, and the first and the last active one's.

    What is not active stands at the last token, which widens no stretch of keys; where none is, that is -1.
    """
    row = first + tl.arange(0, BM)
    there = row < length * G
    active = row < n_active
    pair = tl.load(order + row, mask=there, other=0)
    oldest = tl.load(order + first, mask=first < n_active, other=0) // G
    newest = tl.load(order + tl.minimum(first + BM, n_active) - 1, mask=first < n_active, other=-G) // G
    return pair, there, active, tl.where(active, pair // G, newest), oldest, newest


@jit
def _reach(band, head, first, last, BN: tl.constexpr):
    """Of rows from token `first` to `last`."""
    sink, begin, open = 0, 0, 0
    if band is not None:
        sink = tl.load(band + head * 2)
        window = tl.load(band + head * 2 + 1)
        begin, open = tl.maximum(first - window + 1, 0), tl.maximum(last - window + 1, 0)
    return reach(begin, open, first, last, sink, BN)


@jit
def _seeing(queries, t, band, head):
    """Rows at tokens t and what they see."""
    oldest, sink = None, 0
    if band is not None:
        sink = tl.load(band + head * 2)
        oldest = t - tl.load(band + head * 2 + 1) + 1
    return queries, t, oldest, sink


@kernel("head_routed_attention", do_not_specialize=["T", "n_tokens"])
def routed_forward(
    q, k, v, gate, o, log_sum, order, count, tile, band, q_step, k_step, v_step, gate_step, T, n_tokens, scale,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """One program: o of BM rows of one sequence and key head; and their log_sum [H_kv, B * T * G], where wanted."""
    G: tl.constexpr = H // HK
    head, start, length, n_active, first_row = _tile(tile, count, HK)
    packed = _packed(start, head, n_tokens) * G
    pair, there, active, t, first, last = _rows(order + packed, first_row, length, n_active, G, BM)
    channel = tl.arange(0, BD)[None, :]
    at_q = _begin(q, start, head * G, q_step, T) + _offset(pair, q_step, G)[:, None] + channel
    visited = _reach(band, head, first, last, BN)
    rows = _seeing(tl.load(at_q, mask=active[:, None] & (channel < D), other=0.0), t, band, head)
    kv = (_begin(k, start, head, k_step, T), _begin(v, start, head, v_step, T), k_step[1], v_step[1])
    out, sums = attend(rows, kv, visited, scale, D, BD, BM, BN, PREC)
    at_gate = _begin(gate, start, head * G, gate_step, T) + _offset(pair, gate_step, G)
    weight = tl.load(at_gate, mask=active, other=0.0).to(tl.float32)
    out = tl.where(active[:, None], out * weight[:, None], 0.0)
    at_o = o + (start.to(tl.int64) * H + head * G + _offset(pair, (0, H, 1), G))[:, None] * D + channel
    tl.store(at_o, out.to(o.dtype.element_ty), mask=there[:, None] & (channel < D))
    if log_sum is not None:
        tl.store(log_sum + packed + first_row + tl.arange(0, BM), sums, mask=active)


@kernel("head_routed_attention", do_not_specialize=["T", "n_tokens"])
def routed_query_gradient(
    q, k, v, gate, o, do, log_sum, delta, dq, dgate, order, count, tile, band,
    q_step, k_step, v_step, gate_step, do_step, T, n_tokens, scale,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """One program: dq and dgate of BM rows of one sequence and key head; and their delta, in order as log_sum is."""
    G: tl.constexpr = H // HK
    head, start, length, n_active, first_row = _tile(tile, count, HK)
    packed = _packed(start, head, n_tokens) * G
    pair, there, active, t, first, last = _rows(order + packed, first_row, length, n_active, G, BM)
    row = packed + first_row + tl.arange(0, BM)
    channel = tl.arange(0, BD)[None, :]
    in_d = channel < D
    at_q = _begin(q, start, head * G, q_step, T) + _offset(pair, q_step, G)[:, None] + channel
    at_do = _begin(do, start, head * G, do_step, T) + _offset(pair, do_step, G)[:, None] + channel
    at_gate = _begin(gate, start, head * G, gate_step, T) + _offset(pair, gate_step, G)
    dense = start.to(tl.int64) * H + head * G + _offset(pair, (0, H, 1), G)
    at_o = dense[:, None] * D + channel
    dout = tl.load(at_do, mask=active[:, None] & in_d, other=0.0)
    out = tl.load(o + at_o, mask=active[:, None] & in_d, other=0.0)
    dots = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    weight = tl.load(at_gate, mask=active, other=1.0).to(tl.float32)
    tl.store(delta + row, dots, mask=active)
    tl.store(dgate + dense, tl.where(active, dots / weight, 0.0).to(dgate.dtype.element_ty), mask=there)
    visited = _reach(band, head, first, last, BN)
    rows = _seeing(tl.load(at_q, mask=active[:, None] & in_d, other=0.0), t, band, head)
    cotangents = (dout, weight, tl.load(log_sum + row, mask=active, other=float("inf")), dots)
    kv = (_begin(k, start, head, k_step, T), _begin(v, start, head, v_step, T), k_step[1], v_step[1])
    found = query_gradient(rows, cotangents, kv, visited, scale, D, BD, BM, BN, PREC)
    found = tl.where(active[:, None], found * scale, 0.0)
    tl.store(dq + at_o, found.to(dq.dtype.element_ty), mask=there[:, None] & in_d)


@kernel("head_routed_attention", do_not_specialize=["T", "n_tokens"])
def routed_key_gradients(
    q, k, v, gate, do, log_sum, delta, dk, dv, order, before, count, tile, band,
    q_step, k_step, v_step, gate_step, do_step, T, n_tokens, scale,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """One program: dk and dv of BN keys of one sequence and key head, from the rows that see them, BM at a time."""
    G: tl.constexpr = H // HK
    head, start, length, n_active, first = _tile(tile, count, HK)
    packed = _packed(start, head, n_tokens)
    last = tl.minimum(first + BN, length) - 1
    begin, open, close, end = _visitors(before + packed, first, last, length, n_active, band, head, BM)
    at_q = _begin(q, start, head * G, q_step, T)
    at_do = _begin(do, start, head * G, do_step, T)
    at_gate = _begin(gate, start, head * G, gate_step, T)
    at_k = _begin(k, start, head, k_step, T)
    at_v = _begin(v, start, head, v_step, T)
    keys = (
        load_keys(at_k, k_step[1], first, length, D, BD, BN, True),
        load_keys(at_v, v_step[1], first, length, D, BD, BN, True),
        first,
    )
    by_pair = (at_q, q_step, at_do, do_step, at_gate, gate_step)
    in_order = (order + packed * G, log_sum + packed * G, delta + packed * G)
    sums = (tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32))
    sums = _add_rows(sums, keys, by_pair, in_order, band, head, begin, open, scale, G, D, BD, BM, BN, PREC, True)
    sums = _add_rows(sums, keys, by_pair, in_order, band, head, open, close, scale, G, D, BD, BM, BN, PREC, False)
    if band is not None:
        sums = _add_rows(sums, keys, by_pair, in_order, band, head, close, end, scale, G, D, BD, BM, BN, PREC, True)
    key = first + tl.arange(0, BN)[:, None]
    channel = tl.arange(0, BD)[None, :]
    at = (start.to(tl.int64) * HK + head) * D + key * (HK * D) + channel
    inside = (key < length) & (channel < D)
    tl.store(dk + at, (sums[0] * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + at, sums[1].to(dv.dtype.element_ty), mask=inside)


@jit
def _visitors(before, first, last, length, n_active, band, head, BM: tl.constexpr):
    """Stretches of rows for the keys first to last: from `begin` to `open` and from `close` to `end` some see some of
    them, from `open` to `close` all see all."""
    begin, end = tl.load(before + first), n_active
    open, close = tl.load(before + last), n_active
    if band is not None:
        sink = tl.load(band + head * 2)
        window = tl.load(band + head * 2 + 1)
        end = tl.load(before + last + window, mask=(last + window < length) & (first >= sink), other=n_active)
        close = tl.load(before + first + window, mask=(first + window < length) & (last >= sink), other=n_active)
    open = tl.minimum(begin + tl.cdiv(open - begin, BM) * BM, end)
    if band is not None:
        close = open + tl.maximum(close - open, 0) // BM * BM
    return begin, open, close, end


@jit
def _add_rows(
    sums, keys, by_pair, in_order, band, head, start, stop, scale,
    G: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PREC: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """dk / scale and dv of a tile of keys, after the rows start to stop."""
    q, q_step, do, do_step, gate, gate_step = by_pair
    order, log_sum, delta = in_order
    channel = tl.arange(0, BD)[None, :]
    for first_row in range(start, stop, BM):
        row = first_row + tl.arange(0, BM)
        there = row < stop
        pair = tl.load(order + row, mask=there, other=0)
        inside = there[:, None] & (channel < D)
        queries = tl.load(q + _offset(pair, q_step, G)[:, None] + channel, mask=inside, other=0.0)
        dout = tl.load(do + _offset(pair, do_step, G)[:, None] + channel, mask=inside, other=0.0)
        weight = tl.load(gate + _offset(pair, gate_step, G), mask=there, other=0.0).to(tl.float32)
        sums_of_rows = tl.load(log_sum + row, mask=there, other=float("inf"))
        dots = tl.load(delta + row, mask=there, other=0.0)
        rows = _seeing(queries, pair // G, band, head)
        sums = key_gradients(sums, keys, rows, (dout, weight, sums_of_rows, dots), scale, BN, PREC, EDGE)
    return sums
