"""The chunk-parallel kernels of the gated delta rule: before the forward scan and after the reverse one.

With the notation of `chunk_scan.triton_scan`, T = (I + strict(K K^T * e^{G_i - G_j} beta_j))^-1.
"""

import triton.language as tl

from ..triton_common import (
    chunk_decay,
    decays_between,
    decays_between_transposed,
    decays_since,
    decays_to,
    gate_sums,
    kernel,
    unit_lower_inverse,
)


@kernel("gated_delta_rule")
def delta_prepare(
    k,
    g,
    beta,
    inverse,
    chunk,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """T of one chunk, for every value head of one key head."""
    key_head = tl.program_id(0) % H
    c = tl.program_id(0) // H
    row = tl.load(chunk + c * 2).to(tl.int64)
    i = tl.arange(0, C)
    real = i < tl.load(chunk + c * 2 + 1)
    key = tl.arange(0, BK)
    in_k = real[:, None] & (key < K)[None, :]
    at_k = i[:, None] * (H * K) + key[None, :]
    keys = tl.load(k + (row * H + key_head) * K + at_k, mask=in_k, other=0.0)
    overlap = tl.dot(keys, tl.trans(keys), input_precision=PREC)
    for member in range(0, HV // H):
        head = key_head * (HV // H) + member
        strength = tl.load(beta + row * HV + head + i * HV, mask=real, other=0.0).to(tl.float32)
        a = overlap * strength[None, :]
        if g is not None:
            coarse, fine = gate_sums(tl.load(g + row * HV + head + i * HV, mask=real, other=0.0))
            a *= decays_between(coarse, fine)
        a = unit_lower_inverse(tl.where(i[:, None] > i[None, :], a, 0.0), C, PREC)
        at_c = i[:, None] * (HV * C) + i[None, :]
        out = inverse + (row * HV + head) * C + at_c
        tl.store(out, a.to(inverse.dtype.element_ty), mask=real[:, None])


@kernel("gated_delta_rule")
def delta_gradients(
    q,
    k,
    g,
    beta,
    h,
    e,
    do,
    dv,
    dh,
    dq,
    dk,
    dg,
    dbeta,
    chunk,
    scale,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PREC: tl.constexpr,
):
    """dq, dk of one chunk and key head, dg, dbeta of its value heads.

    Matrices over pairs of tokens are [writer j, reader i], the transpose of A and P. With M_ji = <E_j, dO_i> and
    N_ji = <E_j, dV_i>, beta_j (scale <q_i, k_j> M_ji - <k_i, k_j> N_ji) is the gradient of the log of a
    pair's decay, and the factor of beta_j is the pair's share in beta_j's gradient.
    """
    key_head = tl.program_id(0) % H
    c = tl.program_id(0) // H
    row = tl.load(chunk + c * 2).to(tl.int64)
    i = tl.arange(0, C)
    real = i < tl.load(chunk + c * 2 + 1)
    key = tl.arange(0, BK)
    dtype = q.dtype.element_ty
    q += (row * H + key_head) * K
    k += (row * H + key_head) * K
    at_k = i[:, None] * (H * K) + key[None, :]
    in_k = real[:, None] & (key < K)[None, :]
    at_kt = i[None, :] * (H * K) + key[:, None]  # transposed
    in_kt = real[None, :] & (key < K)[:, None]
    dqueries = tl.zeros([BK, C], tl.float32)  # transposed
    dkeys = tl.zeros([C, BK], tl.float32)
    for member in range(0, HV // H):
        head = key_head * (HV // H) + member
        token = row * HV + head
        chunk_head = c.to(tl.int64) * HV + head
        if g is not None:
            coarse, fine = gate_sums(tl.load(g + token + i * HV, mask=real, other=0.0))
            since = decays_since(coarse, fine)  # e^G
        else:
            since = tl.full([C], 1.0, tl.float32)
        if g is not None and HV > H:  # the share of earlier heads of the group in the sums
            earlier = tl.sum(tl.load(q + at_kt, mask=in_kt, other=0.0).to(tl.float32) * dqueries, 0)
            earlier += tl.sum(tl.load(k + at_k, mask=in_k, other=0.0).to(tl.float32) * dkeys, 1)
        # through the states: read before the chunk, written behind it
        m = tl.zeros([C, C], tl.float32)
        n = tl.zeros([C, C], tl.float32)
        written = tl.zeros([C, BK], tl.float32)
        kept = tl.zeros([BK], tl.float32)
        for start in range(0, V, BV):
            value = start + tl.arange(0, BV)
            at_v = i[:, None] * (HV * V) + value[None, :]
            in_v = real[:, None] & (value < V)[None, :]
            at_s = key[:, None] * V + value[None, :]
            in_state = (key < K)[:, None] & (value < V)[None, :]
            state = tl.load(h + chunk_head * (K * V) + at_s, mask=in_state, other=0.0)  # [BK, BV]
            dstate = tl.load(dh + chunk_head * (K * V) + at_s, mask=in_state, other=0.0)
            error = tl.load(e + token * V + at_v, mask=in_v, other=0.0)  # [C, BV]
            dout = tl.load(do + token * V + at_v, mask=in_v, other=0.0)
            dvalues = tl.load(dv + token * V + at_v, mask=in_v, other=0.0)
            m = tl.dot(error, tl.trans(dout), m, input_precision=PREC)
            n = tl.dot(error, tl.trans(dvalues), n, input_precision=PREC)
            dout = (dout.to(tl.float32) * (since * scale)[:, None]).to(dtype)
            dqueries = tl.dot(state, tl.trans(dout), dqueries, input_precision=PREC)
            dvalues = (dvalues.to(tl.float32) * -since[:, None]).to(dtype)
            dkeys = tl.dot(dvalues, tl.trans(state), dkeys, input_precision=PREC)
            written = tl.dot(error, tl.trans(dstate), written, input_precision=PREC)
            if g is not None:
                kept += tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1)
        if g is not None:
            decay = decays_between_transposed(coarse, fine)
            m *= decay
            n *= decay
        m = tl.where(i[:, None] <= i[None, :], m, 0.0) * scale
        n = tl.where(i[:, None] < i[None, :], n, 0.0)
        strength = tl.load(beta + token + i * HV, mask=real, other=0.0).to(tl.float32)
        dpairs = (m * strength[:, None]).to(dtype)
        # volatile: not moved out of the loop over the group's heads, where they would take registers
        queries = tl.load(q + at_kt, mask=in_kt, other=0.0, volatile=HV > H)  # [BK, C]
        keys = tl.load(k + at_k, mask=in_k, other=0.0, volatile=HV > H)  # [C, BK]
        dread = tl.sum(queries.to(tl.float32) * dqueries, 0)
        dqueries = tl.dot(tl.trans(keys), dpairs, dqueries, input_precision=PREC)
        if member == HV // H - 1:
            tl.store(dq + (row * H + key_head) * K + at_kt, dqueries.to(dtype), mask=in_kt)
        if g is not None:
            dread += tl.sum(keys.to(tl.float32) * dkeys, 1)
            if HV > H:
                dread -= earlier
            left = decays_to(coarse, fine, C)
        else:
            left = 1.0
        dwrite = tl.sum(keys.to(tl.float32) * written, 1) * left
        dkeys += written * (strength * left)[:, None]
        dkeys = tl.dot(dpairs, tl.trans(queries), dkeys, input_precision=PREC)
        pairs = tl.dot(keys, queries, input_precision=PREC) * m
        pairs -= tl.dot(keys, tl.trans(keys), input_precision=PREC) * n
        tl.store(dbeta + token + i * HV, (tl.sum(pairs, 1) + dwrite).to(dbeta.dtype.element_ty), mask=real)
        n *= -strength[:, None]
        n = (n + tl.trans(n)).to(dtype)
        dkeys = tl.dot(n, keys, dkeys, input_precision=PREC)
        if member == HV // H - 1:
            tl.store(dk + (row * H + key_head) * K + at_k, dkeys.to(dtype), mask=in_k)
        if g is not None:
            # gate t decays all pairs of a writer before t and a reader from t on: sums of those alone cancel nothing
            later = tl.where(i[:, None] >= i[None, :], 1.0, 0.0)  # [reader, t]
            across = tl.dot(pairs * strength[:, None], later, input_precision=PREC)  # [writer, t]
            across = tl.where(i[:, None] < i[None, :], across + (dwrite * strength)[:, None], dread[:, None])
            total = tl.sum(across, 0) + tl.sum(kept, 0) * chunk_decay(coarse, fine, C)
            tl.store(dg + token + i * HV, total.to(dg.dtype.element_ty), mask=real)
