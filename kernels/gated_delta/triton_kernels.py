"""The chunk-parallel kernels of the gated delta rule: before the forward scan and after the reverse one.

With the notation of `shared.triton_chunk_scan`, T = (I + strict(K K^T * e^{G_i - G_j} beta_j))^-1.
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
        strength = tl.where((strength < 0) | (strength > 2), float("nan"), strength)  # the state would explode
        a = overlap * strength[None, :]
        if g is not None:
            coarse, fine = gate_sums(tl.load(g + row * HV + head + i * HV, mask=real, other=0.0))
            a *= decays_between(coarse, fine)
        a *= tl.where(i[:, None] > i[None, :], 1.0, 0.0)  # a product, to keep the NaN of a chunk's last token
        a = unit_lower_inverse(a, C, PREC)
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
    pair's decay, and the factor of beta_j is the pair's share in beta_j's gradient. V is walked twice, for the pairs
    and then for the states, which halves what has to stay in registers.
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
    dqueries = tl.zeros([C, BK], tl.float32)
    dkeys = tl.zeros([C, BK], tl.float32)
    for member in range(0, HV // H):
        head = key_head * (HV // H) + member
        token = row * HV + head
        chunk_head = c.to(tl.int64) * HV + head
        if g is not None:
            coarse, fine = gate_sums(tl.load(g + token + i * HV, mask=real, other=0.0))
        strength = tl.load(beta + token + i * HV, mask=real, other=0.0).to(tl.float32)
        # within the chunk
        m = tl.zeros([C, C], tl.float32)
        n = tl.zeros([C, C], tl.float32)
        for start in range(0, V, BV):
            value = start + tl.arange(0, BV)
            at_v = i[:, None] * (HV * V) + value[None, :]
            in_v = real[:, None] & (value < V)[None, :]
            error = tl.load(e + token * V + at_v, mask=in_v, other=0.0)  # [C, BV]
            dout = tl.load(do + token * V + at_v, mask=in_v, other=0.0)
            dvalues = tl.load(dv + token * V + at_v, mask=in_v, other=0.0)
            m = tl.dot(error, tl.trans(dout), m, input_precision=PREC)
            n = tl.dot(error, tl.trans(dvalues), n, input_precision=PREC)
        if g is not None:
            decay = decays_between_transposed(coarse, fine)
            m *= decay
            n *= decay
        m = tl.where(i[:, None] <= i[None, :], m, 0.0) * scale
        n = tl.where(i[:, None] < i[None, :], n, 0.0)
        queries = tl.load(q + at_k, mask=in_k, other=0.0)  # [C, BK]
        keys = tl.load(k + at_k, mask=in_k, other=0.0)
        pairs = tl.dot(keys, tl.trans(queries), input_precision=PREC) * m
        pairs -= tl.dot(keys, tl.trans(keys), input_precision=PREC) * n
        dstrength = tl.sum(pairs, 1)
        if g is not None:
            # gate t decays all pairs of a writer before t and a reader from t on: sums of those alone cancel nothing
            later = tl.where(i[:, None] >= i[None, :], 1.0, 0.0)  # [reader, t]
            across = tl.dot(pairs * strength[:, None], later, input_precision=PREC)  # [writer, t]
            dgate = tl.sum(tl.where(i[:, None] < i[None, :], across, 0.0), 0)
        dpairs = (m * strength[:, None]).to(dtype)
        n *= -strength[:, None]
        n = (n + tl.trans(n)).to(dtype)
        # through the states: read before the chunk, written behind it
        since = decays_since(coarse, fine) if g is not None else tl.full([C], 1.0, tl.float32)  # e^G
        read = tl.zeros([C, BK], tl.float32)
        forgot = tl.zeros([C, BK], tl.float32)
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
            read = tl.dot(dout, tl.trans(state), read, input_precision=PREC)
            forgot = tl.dot(dvalues, tl.trans(state), forgot, input_precision=PREC)
            written = tl.dot(error, tl.trans(dstate), written, input_precision=PREC)
            if g is not None:
                kept += tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1)
        # volatile: read again, where keeping them over the loop would take registers
        queries = tl.load(q + at_k, mask=in_k, other=0.0, volatile=True)
        keys = tl.load(k + at_k, mask=in_k, other=0.0, volatile=True)
        read *= (since * scale)[:, None]
        dqueries += read
        dqueries = tl.dot(tl.trans(dpairs), keys, dqueries, input_precision=PREC)
        dread = tl.sum(queries.to(tl.float32) * read, 1)
        forgot *= since[:, None]
        dkeys -= forgot
        dread -= tl.sum(keys.to(tl.float32) * forgot, 1)
        left = decays_to(coarse, fine, C) if g is not None else tl.full([C], 1.0, tl.float32)
        written *= left[:, None]
        dwrite = tl.sum(keys.to(tl.float32) * written, 1)
        dkeys += written * strength[:, None]
        dkeys = tl.dot(dpairs, queries, dkeys, input_precision=PREC)
        dkeys = tl.dot(n, keys, dkeys, input_precision=PREC)
        tl.store(dbeta + token + i * HV, (dstrength + dwrite).to(dbeta.dtype.element_ty), mask=real)
        if g is not None:
            through = tl.where(i[:, None] < i[None, :], (dwrite * strength)[:, None], dread[:, None])
            dgate += tl.sum(through, 0) + tl.sum(kept, 0) * chunk_decay(coarse, fine, C)
            tl.store(dg + token + i * HV, dgate.to(dg.dtype.element_ty), mask=real)
    tl.store(dq + (row * H + key_head) * K + at_k, dqueries.to(dtype), mask=in_k)
    tl.store(dk + (row * H + key_head) * K + at_k, dkeys.to(dtype), mask=in_k)
