"""One decay per key channel, within chunks: scores P before the scan over chunks, gradients of q, k and g after it.

Tokens i > j of a chunk meet at exactly one level s of 1, 2, 4, ..., C / 2: the one at which i lies in the second and j
in the first half of the same 2s tokens. With b the last token of that first half,

    exp(g_{j+1} + ... + g_i) = exp(g_{b+1} + ... + g_i) exp(g_{j+1} + ... + g_b)

so at each level a token is either read from (first half: its key counts) or reads (second half: its query counts), and
has one weight W = exp(M_s g) for a 0/1 matrix M_s. With Y = W * (q or k) and N_s the 0/1 matrix of the level's pairs,

    P  = scale * (lower triangle of sum_s N_s * (Y Y^T) + diagonal of q k^T)
    dY = (N_s * (dP + dP^T)) Y;   dq or dk = W * dY;   dg = sum_s M_s^T (Y * dY)

Every exponent is a sum of gates, so it is <= 0 and exact to rounding however far the gates lie apart, and g's gradient
is a sum without the differences of large terms that q * dq - k * dk would bring.
"""

import triton
import triton.language as tl

from ..shared.triton_common import kernel


@triton.jit
def _log_decay(g):
    """float32, and finite for a decay of 0: e^-128 is 0 in float32. Above 0 there is no decay: NaN."""
    g = tl.maximum(g.to(tl.float32), -128.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(g > 0, float("nan"), g)


@triton.jit
def _sum_gates(which, g, PREC: tl.constexpr):
    """which [C, C] of 0 and 1, times g [C, D] float32.

    Half-precision kernels take g in float16, to a relative 2^-12 or 3e-8: what its exp weighs is rounded as coarsely.
    """
    dtype = tl.float16 if PREC == "tf32" else tl.float32
    return tl.dot(which.to(dtype), g.to(dtype), input_precision=PREC)


@triton.jit
def _sum_products(which, x, PREC: tl.constexpr):
    """which [C, C] of 0 and 1, times x [C, D] float32; half-precision kernels take x in bfloat16, for its range."""
    dtype = tl.bfloat16 if PREC == "tf32" else tl.float32
    return tl.dot(which.to(dtype), x.to(dtype), input_precision=PREC)


@triton.jit
def _summed(i, level):
    """First and last token whose gates M sums for token i: its half up to itself if it reads, else the rest of it."""
    half = i >> level
    reads = half % 2 == 1
    return tl.where(reads, half << level, i + 1), tl.where(reads, i, ((half + 1) << level) - 1)


@triton.jit
def _pairs(i, level):
    """N of a level and its transpose, [C, C]: tokens in neighbouring halves."""
    half = i >> level
    return (half[:, None] ^ half[None, :]) == 1


@kernel("gated_linear_attention", do_not_specialize=["scale"])
def prepare_vector(
    q, k, g, scores, read, written, decay, chunks, scale,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, LEVELS: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """What the scan over chunks needs of one chunk and head, G being the running sum of g:

    scores [T, H, C] = P, read = scale e^G q, written = e^{G_C - G} k [T, H, K], decay [n_chunks, H, K] = e^{G_C}.
    """
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    first_row = tl.load(chunks + 2 * chunk).to(tl.int64) * H + head
    n_tokens = tl.load(chunks + 2 * chunk + 1)
    i = tl.arange(0, C)
    row, col = i[:, None], i[None, :]
    real = (i < n_tokens)[:, None]
    dtype = q.dtype.element_ty
    b_p = tl.zeros([C, C], tl.float32)
    diagonal = tl.zeros([C], tl.float32)
    for first_channel in range(0, K, BK):
        channel = first_channel + tl.arange(0, BK)
        tile = row * (H * K) + channel[None, :]
        there = real & (channel < K)[None, :]
        b_q = tl.load(q + first_row * K + tile, mask=there, other=0.0)
        b_k = tl.load(k + first_row * K + tile, mask=there, other=0.0)
        b_g = _log_decay(tl.load(g + first_row * K + tile, mask=there, other=0.0))
        b_read = b_q.to(tl.float32) * tl.exp(_sum_gates(row >= col, b_g, PREC)) * scale
        tl.store(read + first_row * K + tile, b_read.to(dtype), mask=there)
        b_written = b_k.to(tl.float32) * tl.exp(_sum_gates(row < col, b_g, PREC))
        tl.store(written + first_row * K + tile, b_written.to(dtype), mask=there)
        tl.store(decay + (chunk * H + head).to(tl.int64) * K + channel, tl.exp(tl.sum(b_g, 0)), mask=channel < K)
        diagonal += tl.sum(b_q.to(tl.float32) * b_k.to(tl.float32), 1)
        for level in range(LEVELS):
            reads = ((i >> level) % 2 == 1)[:, None]
            first, last = _summed(i, level)
            weight = tl.exp(_sum_gates((col >= first[:, None]) & (col <= last[:, None]), b_g, PREC))
            y = (tl.where(reads, b_q, b_k).to(tl.float32) * weight).to(dtype)
            b_p += tl.where(_pairs(i, level), tl.dot(y, tl.trans(y), input_precision=PREC), 0.0)
    b_p = tl.where(row > col, b_p, tl.where(row == col, diagonal[:, None], 0.0)) * scale
    tl.store(scores + first_row * C + row * (H * C) + col, b_p.to(dtype), mask=real)


@kernel("gated_linear_attention", do_not_specialize=["scale"])
def gradients_vector(
    q, k, v, g, do, h, dh, dq, dk, dg, chunks, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    LEVELS: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq, dk, dg [T, H, K] of one chunk, head and block of channels, from the states before the chunk (h) and the
    gradients of those behind it (dh), [n_chunks, H, K, V]."""
    n_blocks: tl.constexpr = (K + BK - 1) // BK
    first_channel = tl.program_id(0) % n_blocks * BK
    head = tl.program_id(0) // n_blocks % H
    chunk = tl.program_id(0) // n_blocks // H
    first_row = tl.load(chunks + 2 * chunk).to(tl.int64) * H + head
    n_tokens = tl.load(chunks + 2 * chunk + 1)
    i = tl.arange(0, C)
    row, col = i[:, None], i[None, :]
    real = (i < n_tokens)[:, None]
    dtype = q.dtype.element_ty
    channel = first_channel + tl.arange(0, BK)
    state = (chunk * H + head).to(tl.int64) * (K * V)
    lower = tl.zeros([C, C], tl.float32)  # dO V^T and its transpose
    upper = tl.zeros([C, C], tl.float32)
    b_dq = tl.zeros([C, BK], tl.float32)
    b_dk = tl.zeros([C, BK], tl.float32)
    carried = tl.zeros([BK], tl.float32)
    for first_value in range(0, V, BV):
        value = first_value + tl.arange(0, BV)
        tile = row * (H * V) + value[None, :]
        there = real & (value < V)[None, :]
        b_v = tl.load(v + first_row * V + tile, mask=there, other=0.0)
        b_do = tl.load(do + first_row * V + tile, mask=there, other=0.0)
        tile = channel[:, None] * V + value[None, :]
        there = (channel < K)[:, None] & (value < V)[None, :]
        b_h = tl.load(h + state + tile, mask=there, other=0.0)
        b_dh = tl.load(dh + state + tile, mask=there, other=0.0)
        lower += tl.dot(b_do, tl.trans(b_v), input_precision=PREC)
        upper += tl.dot(b_v, tl.trans(b_do), input_precision=PREC)
        b_dq += tl.dot(b_do, tl.trans(b_h), input_precision=PREC)
        b_dk += tl.dot(b_v, tl.trans(b_dh), input_precision=PREC)
        carried += tl.sum(b_h.to(tl.float32) * b_dh.to(tl.float32), 1)
    dp = (tl.where(row > col, lower, upper) * scale).to(dtype)
    with_itself = tl.sum(tl.where(row == col, lower, 0.0), 1)[:, None] * scale

    tile = row * (H * K) + channel[None, :]
    there = real & (channel < K)[None, :]
    b_q = tl.load(q + first_row * K + tile, mask=there, other=0.0)
    b_k = tl.load(k + first_row * K + tile, mask=there, other=0.0)
    b_g = _log_decay(tl.load(g + first_row * K + tile, mask=there, other=0.0))
    b_dq *= tl.exp(_sum_gates(row >= col, b_g, PREC)) * scale
    b_dk *= tl.exp(_sum_gates(row < col, b_g, PREC))
    b_dg = (tl.exp(tl.sum(b_g, 0)) * carried)[None, :]
    b_dg += _sum_products(row <= col, b_q.to(tl.float32) * b_dq, PREC)
    b_dg += _sum_products(row > col, b_k.to(tl.float32) * b_dk, PREC)
    b_dq += with_itself * b_k.to(tl.float32)
    b_dk += with_itself * b_q.to(tl.float32)
    for level in range(LEVELS):
        reads = ((i >> level) % 2 == 1)[:, None]
        first, last = _summed(i, level)
        weight = tl.exp(_sum_gates((col >= first[:, None]) & (col <= last[:, None]), b_g, PREC))
        y = tl.where(reads, b_q, b_k).to(tl.float32) * weight
        dy = tl.dot(tl.where(_pairs(i, level), dp, 0.0).to(dtype), y.to(dtype), input_precision=PREC)
        b_dg += _sum_products((row >= first[None, :]) & (row <= last[None, :]), y * dy, PREC)
        b_dq += tl.where(reads, weight * dy, 0.0)
        b_dk += tl.where(reads, 0.0, weight * dy)
    tl.store(dq + first_row * K + tile, b_dq.to(dq.dtype.element_ty), mask=there)
    tl.store(dk + first_row * K + tile, b_dk.to(dk.dtype.element_ty), mask=there)
    tl.store(dg + first_row * K + tile, b_dg.to(dg.dtype.element_ty), mask=there)
