"""Attention of the query heads of each token over the sink and the window of its sequence: the kernels that the
attention operators launch.

A row is a pair t * G + i, of query head i of the key head's G at token t of the sequence. With an `order` [H_kv,
B * T * G] int32 rows are some of the pairs, the first `count` [N, H_kv] ones of a sequence; those behind are answered
with 0. `before` [H_kv, B * T] int32 are the rows of the tokens before a token. Without, rows are all pairs by number.

`gate` [B, T, H] multiplies what a row finds; None is 1. `tile` int32 [n_tiles, 4]: first token of a sequence in
[B * T], its length, its number, the tile's first row or key. `band` int32 [H_kv, 2]: sink and window; None is all keys.
X_step: elements from one batch row, token and head of X to the next; outputs are dense. n_tokens: B * T.
"""

import triton.language as tl

from .triton_common import jit, kernel
from .triton_row_attention import attend, key_gradients, load_keys, query_gradient, reach


@jit
def at_first(x, start, head, step, T):
    """Where x [B, T, heads, ...] has a sequence's first token of a head."""
    return x + (start // T).to(tl.int64) * step[0] + (start % T).to(tl.int64) * step[1] + head.to(tl.int64) * step[2]


@jit
def at_pairs(pair, step, G: tl.constexpr):
    """From there to the pairs."""
    return (pair // G).to(tl.int64) * step[1] + (pair % G).to(tl.int64) * step[2]


@jit
def in_table(start, head, n_tokens):
    """Where [H_kv, B * T] has a sequence's first token of a head."""
    return head.to(tl.int64) * n_tokens + start


@jit
def _tile(tile, count, HK: tl.constexpr, G: tl.constexpr):
    """This program's key head, its sequence's first token, length and number of rows, its first row or key."""
    tile += tl.program_id(0) // HK * 4
    head = tl.program_id(0) % HK
    length = tl.load(tile + 1)
    n_rows = length * G
    if count is not None:
        n_rows = tl.load(count + tl.load(tile + 2) * HK + head)
    return head, tl.load(tile), length, n_rows, tl.load(tile + 3)


@jit
def _pairs(order, row, mask):
    """Which pairs rows are."""
    pair = row
    if order is not None:
        pair = tl.load(order + row, mask=mask, other=0)
    return pair


@jit
def _weights(gate, pair, step, mask, G: tl.constexpr):
    """Of pairs, 1 where there is none; `gate` at the sequence's first token of the key head."""
    return tl.load(gate + at_pairs(pair, step, G), mask=mask, other=1.0).to(tl.float32)


@jit
def _rows(order, first, length, n_rows, G: tl.constexpr, BM: tl.constexpr):
    """A tile's pairs, which of them there are, which are rows, their tokens, and the first and the last row's.

    What is none stands at the last token, which widens no stretch of keys; where no row is, that is -1.
    """
    row = first + tl.arange(0, BM)
    there = row < length * G
    active = row < n_rows
    pair = _pairs(order, row, there)
    if order is None:
        oldest = first // G
        newest = (tl.minimum(first + BM, n_rows) - 1) // G
    else:
        oldest = tl.load(order + first, mask=first < n_rows, other=0) // G
        newest = tl.load(order + tl.minimum(first + BM, n_rows) - 1, mask=first < n_rows, other=-G) // G
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


@kernel("banded_attention", do_not_specialize=["T", "n_tokens"])
def band_forward(
    q, k, v, gate, o, log_sum, order, count, tile, band, q_step, k_step, v_step, gate_step, T, n_tokens, scale,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """One program: o of BM rows of one sequence and key head; and their log_sum [H_kv, B * T * G], where wanted."""
    G: tl.constexpr = H // HK
    head, start, length, n_rows, first_row = _tile(tile, count, HK, G)
    table = in_table(start, head, n_tokens) * G
    if order is not None:
        order += table
    pair, there, active, t, first, last = _rows(order, first_row, length, n_rows, G, BM)
    channel = tl.arange(0, BD)[None, :]
    at_q = at_first(q, start, head * G, q_step, T) + at_pairs(pair, q_step, G)[:, None] + channel
    visited = _reach(band, head, first, last, BN)
    rows = _seeing(tl.load(at_q, mask=active[:, None] & (channel < D), other=0.0), t, band, head)
    kv = (at_first(k, start, head, k_step, T), at_first(v, start, head, v_step, T), k_step[1], v_step[1])
    out, sums = attend(rows, kv, visited, scale, D, BD, BM, BN, PREC)
    if gate is not None:
        weight = _weights(at_first(gate, start, head * G, gate_step, T), pair, gate_step, active, G)
        out = tl.where(active[:, None], out * weight[:, None], 0.0)
    at_o = o + (start.to(tl.int64) * H + head * G + at_pairs(pair, (0, H, 1), G))[:, None] * D + channel
    tl.store(at_o, out.to(o.dtype.element_ty), mask=there[:, None] & (channel < D))
    if log_sum is not None:
        tl.store(log_sum + table + first_row + tl.arange(0, BM), sums, mask=active)


@kernel("banded_attention", do_not_specialize=["T", "n_tokens"])
def band_query_gradient(
    q, k, v, gate, o, do, log_sum, delta, dq, dgate, order, count, tile, band,
    q_step, k_step, v_step, gate_step, do_step, T, n_tokens, scale,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """One program: dq and dgate of BM rows of one sequence and key head; and their delta, in order as log_sum is."""
    G: tl.constexpr = H // HK
    head, start, length, n_rows, first_row = _tile(tile, count, HK, G)
    table = in_table(start, head, n_tokens) * G
    if order is not None:
        order += table
    pair, there, active, t, first, last = _rows(order, first_row, length, n_rows, G, BM)
    row = table + first_row + tl.arange(0, BM)
    channel = tl.arange(0, BD)[None, :]
    in_d = channel < D
    at_q = at_first(q, start, head * G, q_step, T) + at_pairs(pair, q_step, G)[:, None] + channel
    at_do = at_first(do, start, head * G, do_step, T) + at_pairs(pair, do_step, G)[:, None] + channel
    dense = start.to(tl.int64) * H + head * G + at_pairs(pair, (0, H, 1), G)
    at_o = dense[:, None] * D + channel
    dout = tl.load(at_do, mask=active[:, None] & in_d, other=0.0)
    out = tl.load(o + at_o, mask=active[:, None] & in_d, other=0.0)
    dots = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta + row, dots, mask=active)
    sums = tl.load(log_sum + row, mask=active, other=float("inf"))
    if gate is None:
        cotangents = (dout, gate, sums, dots)  # the compiler takes no None of its own into a tuple
    else:
        weight = _weights(at_first(gate, start, head * G, gate_step, T), pair, gate_step, active, G)
        tl.store(dgate + dense, tl.where(active, dots / weight, 0.0).to(dgate.dtype.element_ty), mask=there)
        cotangents = (dout, weight, sums, dots)
    visited = _reach(band, head, first, last, BN)
    rows = _seeing(tl.load(at_q, mask=active[:, None] & in_d, other=0.0), t, band, head)
    kv = (at_first(k, start, head, k_step, T), at_first(v, start, head, v_step, T), k_step[1], v_step[1])
    found = query_gradient(rows, cotangents, kv, visited, scale, D, BD, BM, BN, PREC)
    found = tl.where(active[:, None], found * scale, 0.0)
    tl.store(dq + at_o, found.to(dq.dtype.element_ty), mask=there[:, None] & in_d)


@kernel("banded_attention", do_not_specialize=["T", "n_tokens"])
def band_key_gradients(
    q, k, v, gate, do, log_sum, delta, dk, dv, order, before, count, tile, band,
    q_step, k_step, v_step, gate_step, do_step, T, n_tokens, scale,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """One program: dk and dv of BN keys of one sequence and key head, from the rows that see them, BM at a time."""
    G: tl.constexpr = H // HK
    head, start, length, n_rows, first = _tile(tile, count, HK, G)
    table = in_table(start, head, n_tokens)
    last = tl.minimum(first + BN, length) - 1
    if order is not None:
        order += table * G
        before += table
    begin, open, close, end = _visitors(before, first, last, length, n_rows, band, head, G, BM)
    at_q = at_first(q, start, head * G, q_step, T)
    at_do = at_first(do, start, head * G, do_step, T)
    at_k = at_first(k, start, head, k_step, T)
    at_v = at_first(v, start, head, v_step, T)
    keys = (
        load_keys(at_k, k_step[1], first, length, D, BD, BN, True),
        load_keys(at_v, v_step[1], first, length, D, BD, BN, True),
        first,
    )
    if gate is None:
        by_pair = (at_q, q_step, at_do, do_step, gate, gate_step)
    else:
        by_pair = (at_q, q_step, at_do, do_step, at_first(gate, start, head * G, gate_step, T), gate_step)
    in_order = (order, log_sum + table * G, delta + table * G)
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
def _visitors(before, first, last, length, n_rows, band, head, G: tl.constexpr, BM: tl.constexpr):
    """Stretches of rows for the keys first to last: from `begin` to `open` and from `close` to `end` some see some of
    them, from `open` to `close` all see all."""
    begin, end = _rows_before(before, first, True, n_rows, G), n_rows
    open, close = _rows_before(before, last, True, n_rows, G), n_rows
    if band is not None:
        sink = tl.load(band + head * 2)
        window = tl.load(band + head * 2 + 1)
        end = _rows_before(before, last + window, (last + window < length) & (first >= sink), n_rows, G)
        close = _rows_before(before, first + window, (first + window < length) & (last >= sink), n_rows, G)
    open = tl.minimum(begin + tl.cdiv(open - begin, BM) * BM, end)
    if band is not None:
        close = open + tl.maximum(close - open, 0) // BM * BM
    return begin, open, close, end


@jit
def _rows_before(before, token, ends, n_rows, G: tl.constexpr):
    """How many rows the tokens before a token have; all, unless it `ends` them."""
    return tl.where(ends, token * G, n_rows) if before is None else tl.load(before + token, mask=ends, other=n_rows)


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
        pair = _pairs(order, row, there)
        inside = there[:, None] & (channel < D)
        queries = tl.load(q + at_pairs(pair, q_step, G)[:, None] + channel, mask=inside, other=0.0)
        dout = tl.load(do + at_pairs(pair, do_step, G)[:, None] + channel, mask=inside, other=0.0)
        sums_of_rows = tl.load(log_sum + row, mask=there, other=float("inf"))
        dots = tl.load(delta + row, mask=there, other=0.0)
        rows = _seeing(queries, pair // G, band, head)
        if gate is None:
            cotangents = (dout, gate, sums_of_rows, dots)
        else:
            cotangents = (dout, _weights(gate, pair, gate_step, there, G), sums_of_rows, dots)
        sums = key_gradients(sums, keys, rows, cotangents, scale, BN, PREC, EDGE)
    return sums
