"""Softmax attention of query rows over keys, tile by tile: the loops that the attention operators' kernels share.

A row r sees the keys j <= newest_r with j >= oldest_r or j < sink. Which rows stand in a tile, and in which order, is
the calling kernel's business. With P the softmax and weight_r what row r's result is multiplied by, None for 1:

    S = scale Q K^T,  P = softmax(S),  O = weight P V
    delta = <dO, O>,  dS = P (weight dO V^T - delta)
    dQ = scale dS K;  dK = scale dS^T Q;  dV = (weight P)^T dO

The softmax is made in base 2 as the keys pass by; log_sum is the base-2 logarithm of its denominator. Backward needs no
atomics: dQ stays with a tile of rows, dK and dV with a tile of keys, and each makes its own P from the log_sum.

These go from hand to hand as tuples:
    rows     (queries [BM, BD], newest [BM], oldest [BM], sink); oldest is None where rows see all up to the newest
    kv       (k, v, k_step, v_step): where one head's keys and values begin, and elements from one to the next
    visited  the stretches of keys that a tile of rows has to visit, see `reach`

At the edges of its reach some row of a tile does not see some key. There NaN and infinities of keys and values reach
the rows that see them and no others, though a product with 0 would spread them.
"""

import triton.language as tl

from .triton_common import jit

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # below every score, and finite: minus itself it is 0


@jit
def reach(oldest_first, oldest_last, newest_first, newest_last, sink, BN: tl.constexpr):
    """(sink, begin, open, close, end): the keys for rows whose oldest and newest ones lie between a first and a last.

    Those up to `sink` are seen by all rows, and those from `open` to `close`, whole tiles; those from `begin` to `open`
    and from `close` to `end` by some. A tile without a row has newest_last -1.
    """
    end = newest_last + 1
    open = tl.minimum(oldest_first + tl.cdiv(oldest_last - oldest_first, BN) * BN, end)
    close = open + tl.maximum(newest_first + 1 - open, 0) // BN * BN
    return tl.minimum(sink, oldest_first), oldest_first, open, tl.minimum(close, end), end


@jit
def attend(
    rows, kv, visited, scale,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """P V [BM, BD] and log_sum [BM]; where there is no key at all, newest -1, P V is 0."""
    sink, begin, open, close, end = visited
    scale *= LOG2_E
    state = (tl.zeros([BM, BD], tl.float32), tl.full([BM], LOWEST, tl.float32), tl.zeros([BM], tl.float32))
    if rows[2] is not None:
        state = _attend(state, rows, kv, 0, sink, scale, D, BD, BN, PREC, True)
        state = _attend(state, rows, kv, begin, open, scale, D, BD, BN, PREC, True)
    state = _attend(state, rows, kv, open, close, scale, D, BD, BN, PREC, False)
    state = _attend(state, rows, kv, close, end, scale, D, BD, BN, PREC, True)
    acc, high, total = state
    total = tl.where(rows[1] < 0, 1.0, total)
    return acc / total[:, None], high + tl.log2(total)


@jit
def _attend(
    state, rows, kv, start, stop, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PREC: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """The sums, their largest scaled score and the softmax's denominator, after the keys start to stop."""
    acc, high, total = state
    k, v, k_step, v_step = kv
    for first in range(start, stop, BN):
        keys = load_keys(k, k_step, first, stop, D, BD, BN, EDGE)
        scores = tl.dot(rows[0], tl.trans(keys), input_precision=PREC)
        if EDGE:
            seen = sees(rows, first, stop, BN)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(high, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - higher[:, None])
        values = load_keys(v, v_step, first, stop, D, BD, BN, EDGE)
        if EDGE:
            there = finite(values)
            values = tl.where(there, values, 0.0)
            spoilt = tl.min(there.to(tl.int32), 1) == 0
            p = tl.where(seen & spoilt[None, :], float("nan"), p)
        fade = tl.exp2(high - higher)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision=PREC)
        high = higher
    return acc, high, total


@jit
def query_gradient(
    rows, cotangents, kv, visited, scale,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dQ / scale [BM, BD]. cotangents: (dO [BM, BD], weight, log_sum, delta [BM])."""
    sink, begin, open, close, end = visited
    scale *= LOG2_E
    dq = tl.zeros([BM, BD], tl.float32)
    if rows[2] is not None:
        dq = _query_gradient(dq, rows, cotangents, kv, 0, sink, scale, D, BD, BN, PREC, True)
        dq = _query_gradient(dq, rows, cotangents, kv, begin, open, scale, D, BD, BN, PREC, True)
    dq = _query_gradient(dq, rows, cotangents, kv, open, close, scale, D, BD, BN, PREC, False)
    return _query_gradient(dq, rows, cotangents, kv, close, end, scale, D, BD, BN, PREC, True)


@jit
def _query_gradient(
    dq, rows, cotangents, kv, start, stop, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PREC: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    dout, weight, log_sum, delta = cotangents
    k, v, k_step, v_step = kv
    for first in range(start, stop, BN):
        keys = load_keys(k, k_step, first, stop, D, BD, BN, EDGE)
        values = load_keys(v, v_step, first, stop, D, BD, BN, EDGE)
        p = tl.exp2(tl.dot(rows[0], tl.trans(keys), input_precision=PREC) * scale - log_sum[:, None])
        dp = tl.dot(dout, tl.trans(values), input_precision=PREC)
        if weight is not None:
            dp = dp * weight[:, None]
        ds = p * (dp - delta[:, None])
        if EDGE:
            ds = tl.where(sees(rows, first, stop, BN), ds, 0.0)
            keys = tl.where(finite(keys), keys, 0.0)  # rows that see such a key have NaN in ds
        dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=PREC)
    return dq


@jit
def key_gradients(sums, tile, rows, cotangents, scale, BN: tl.constexpr, PREC: tl.constexpr, EDGE: tl.constexpr):
    """dK / scale and dV [BN, BD] after one more tile of rows, all of which see all of the keys if it is no EDGE.

    tile: keys and values [BN, BD], and the first key's position. A row that is none has log_sum inf and 0 for the rest.
    """
    dk, dv = sums
    keys, values, first = tile
    queries, newest, oldest, sink = rows
    dout, weight, log_sum, delta = cotangents
    p = tl.exp2(tl.dot(keys, tl.trans(queries), input_precision=PREC) * (scale * LOG2_E) - log_sum[None, :])  # [BN, BM]
    if EDGE:
        key = (first + tl.arange(0, BN))[:, None]
        seen = key <= newest[None, :]
        if oldest is not None:
            seen = seen & ((key >= oldest[None, :]) | (key < sink))
        p = tl.where(seen, p, 0.0)
    weighted = p
    dp = tl.dot(values, tl.trans(dout), input_precision=PREC)
    if weight is not None:
        weighted = p * weight[None, :]
        dp = dp * weight[None, :]
    dv = tl.dot(weighted.to(dout.dtype), dout, dv, input_precision=PREC)
    ds = p * (dp - delta[None, :])
    if EDGE:
        ds = tl.where(p == 0.0, 0.0, ds)
    dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=PREC)
    return dk, dv


@jit
def load_keys(x, step, first, stop, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, EDGE: tl.constexpr):
    """[BN, BD] from `first` on; 0 from `stop` on."""
    row = tl.arange(0, BN)[:, None]
    channel = tl.arange(0, BD)[None, :]
    at = x + first.to(tl.int64) * step + (row * step + channel)
    if EDGE:
        keys = tl.load(at, mask=(first + row < stop) & (channel < D), other=0.0)
    elif D < BD:
        keys = tl.load(at, mask=channel < D, other=0.0)
    else:
        keys = tl.load(at)
    return keys


@jit
def sees(rows, first, stop, BN: tl.constexpr):
    """Whether rows see the keys from `first` on, none from `stop` on [BM, BN]."""
    key = (first + tl.arange(0, BN))[None, :]
    seen = (key <= rows[1][:, None]) & (key < stop)
    if rows[2] is not None:
        seen = seen & ((key >= rows[2][:, None]) | (key < rows[3]))
    return seen


@jit
def finite(x):
    return tl.abs(x.to(tl.float32)) < float("inf")
