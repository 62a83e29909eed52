"""One decay per head, or none: gradients of q, k and g within chunks, after the reverse scan over chunks.

With G the running sum of g in a chunk, D_ij = e^{G_i - G_j} where i >= j, P = scale Q K^T * D and dP = dO V^T,

    dQ = scale ((dP * D) K + e^G dO S^T),   dK = scale (dP * D)^T Q + e^{G_C - G} V dS'^T
    dg_t = sum_{j < t <= i} dP_ij P_ij + sum_{i >= t} <q_i, dq_i> + sum_{j < t} <k_j, dk_j> + e^{G_C} <S, dS'>

where in the last line dq and dk are the parts that come from the states S before the chunk and S' behind it.
"""

import triton.language as tl

from ..shared.triton_common import (
    chunk_decay,
    decays_between,
    decays_between_transposed,
    decays_since,
    decays_to,
    gate_sums,
    kernel,
)


@kernel("gated_linear_attention", do_not_specialize=["scale"])
def gradients_scalar(
    q, k, v, g, do, h, dh, dq, dk, dg, chunks, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """dq, dk [T, H, K] and, with gates, dg [T, H] of one chunk and head; h, dh [n_chunks, H, K, V] are S and dS'."""
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    first_row = tl.load(chunks + 2 * chunk).to(tl.int64) * H + head
    i = tl.arange(0, C)
    row, col = i[:, None], i[None, :]
    real = i < tl.load(chunks + 2 * chunk + 1)
    dtype = q.dtype.element_ty
    state = (chunk * H + head).to(tl.int64) * (K * V)
    dp = tl.zeros([C, C], tl.float32)  # dO V^T and its transpose
    dp_t = tl.zeros([C, C], tl.float32)
    for first_value in range(0, V, BV):
        value = first_value + tl.arange(0, BV)
        tile = row * (H * V) + value[None, :]
        there = real[:, None] & (value < V)[None, :]
        b_v = tl.load(v + first_row * V + tile, mask=there, other=0.0)
        b_do = tl.load(do + first_row * V + tile, mask=there, other=0.0)
        dp = tl.dot(b_do, tl.trans(b_v), dp, input_precision=PREC)
        dp_t = tl.dot(b_v, tl.trans(b_do), dp_t, input_precision=PREC)
    if g is not None:
        coarse, fine = gate_sums(tl.load(g + first_row + i * H, mask=real, other=0.0))
        dp *= decays_between(coarse, fine)
        dp_t *= decays_between_transposed(coarse, fine)
    dp = tl.where(row >= col, dp, 0.0) * scale
    dp_half = dp.to(dtype)
    dp_t = (tl.where(row <= col, dp_t, 0.0) * scale).to(dtype)
    qk = tl.zeros([C, C], tl.float32)
    read = tl.zeros([C], tl.float32)  # <q, dq> and <k, dk> across chunks
    written = tl.zeros([C], tl.float32)
    carried = 0.0
    for first_channel in range(0, K, BK):
        channel = first_channel + tl.arange(0, BK)
        b_dq = tl.zeros([C, BK], tl.float32)
        b_dk = tl.zeros([C, BK], tl.float32)
        for first_value in range(0, V, BV):
            value = first_value + tl.arange(0, BV)
            tile = row * (H * V) + value[None, :]
            there = real[:, None] & (value < V)[None, :]
            b_v = tl.load(v + first_row * V + tile, mask=there, other=0.0)
            b_do = tl.load(do + first_row * V + tile, mask=there, other=0.0)
            tile = channel[:, None] * V + value[None, :]
            there = (channel < K)[:, None] & (value < V)[None, :]
            b_h = tl.load(h + state + tile, mask=there, other=0.0)
            b_dh = tl.load(dh + state + tile, mask=there, other=0.0)
            b_dq = tl.dot(b_do, tl.trans(b_h), b_dq, input_precision=PREC)
            b_dk = tl.dot(b_v, tl.trans(b_dh), b_dk, input_precision=PREC)
            if g is not None:
                carried += tl.sum(tl.sum(b_h.to(tl.float32) * b_dh.to(tl.float32), 1), 0)
        tile = row * (H * K) + channel[None, :]
        there = real[:, None] & (channel < K)[None, :]
        b_q = tl.load(q + first_row * K + tile, mask=there, other=0.0)
        b_k = tl.load(k + first_row * K + tile, mask=there, other=0.0)
        b_dq *= scale
        if g is not None:
            b_dq *= decays_since(coarse, fine)[:, None]
            b_dk *= decays_to(coarse, fine, C)[:, None]
            read += tl.sum(b_q.to(tl.float32) * b_dq, 1)
            written += tl.sum(b_k.to(tl.float32) * b_dk, 1)
            qk = tl.dot(b_q, tl.trans(b_k), qk, input_precision=PREC)
        b_dq = tl.dot(dp_half, b_k, b_dq, input_precision=PREC)
        b_dk = tl.dot(dp_t, b_q, b_dk, input_precision=PREC)
        tl.store(dq + first_row * K + tile, b_dq.to(dtype), mask=there)
        tl.store(dk + first_row * K + tile, b_dk.to(dtype), mask=there)
    if g is not None:
        inside = tl.where(row > col, dp * qk, 0.0)
        inside = tl.cumsum(inside, 0, reverse=True)  # over i >= t
        b_dg = tl.sum(tl.where(col < row, inside + written[None, :], read[None, :]), 1)
        b_dg += chunk_decay(coarse, fine, C) * carried
        tl.store(dg + first_row + i * H, b_dg.to(dg.dtype.element_ty), mask=real)
