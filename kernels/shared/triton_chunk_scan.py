"""The recurrence over chunks of C tokens, forward and reverse, for every operator with a state S [K, V] per head.

Within a chunk, with G the running sum of the log decays g, e^G Q meaning rows of Q times their decay since the chunk's
start and R = e^{G_C - G} those until its end:

    E  = T (V - e^G K S),  U = beta E       with the delta correction; else U = V
    O  = scale e^G Q S + P U                P = scale (Q K^T * e^{G_i - G_j}), lower triangle with diagonal
    S' = e^{G_C} S + (R K)^T U

and in reverse, dS' the adjoint of S':

    dU = P^T dO + R K dS'
    dV = T^T (beta dU)                      with the delta correction; else dV = dU
    dS = e^{G_C} dS' + (scale e^G Q)^T dO - (e^G K)^T dV

Gates come in three kinds:
    none               g = decay = None
    one per head       g [B, T, HV]; q, k as given; P is computed here
    one per channel    decay [n_chunks, HV, K] float32 = e^{G_C}, and the caller passes scale e^G Q as q, e^{G_C - G} K
                       as k and P as `scores` [B, T, HV, C] (row i of a chunk holds P_i0 .. P_i,C-1; scale included),
                       all in v's dtype and made in parallel over chunks: a scan step then has no exponentials
With the delta correction (gates per head or none): `inverse` = T [B, T, HV, C] in v's dtype and beta [B, T, HV].

All tensors contiguous, head dims 1 to 256, q, k [B, T, H, K], v [B, T, HV, V], HV a multiple of H.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_common import (
    Tables,
    chunk_decay,
    decays_between,
    decays_between_transposed,
    decays_since,
    decays_to,
    gate_sums,
    kernel,
    multiprocessors,
    padded,
    precision,
)


@kernel("chunk_scan")
def chunk_scan_forward(
    q,
    k,
    v,
    g,
    beta,
    inverse,
    scores,
    decay,
    initial_state,
    o,
    h,
    e,
    final_state,
    sequence,
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
    """One program: one sequence, one value head, BV columns of its state. Writes o, h, e, final_state where given."""
    n_blocks: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % n_blocks
    head = tl.program_id(0) // n_blocks % HV
    n = tl.program_id(0) // n_blocks // HV
    token = tl.load(sequence + n * 3)
    length = tl.load(sequence + n * 3 + 1)
    first_chunk = tl.load(sequence + n * 3 + 2)
    key_head = head // (HV // H)
    dtype = v.dtype.element_ty

    i = tl.arange(0, C)
    key = tl.arange(0, BK)
    value = block * BV + tl.arange(0, BV)
    at_k = i[:, None] * (H * K) + key[None, :]
    at_v = i[:, None] * (HV * V) + value[None, :]
    at_c = i[:, None] * (HV * C) + i[None, :]
    at_s = key[:, None] * V + value[None, :]
    in_state = (key < K)[:, None] & (value < V)[None, :]
    state_offset = (n * HV + head).to(tl.int64) * (K * V)
    if initial_state is None:
        state = tl.zeros([BK, BV], tl.float32)
    else:
        state = tl.load(initial_state + state_offset + at_s, mask=in_state, other=0.0)
    for t in range(0, tl.cdiv(length, C)):
        row = (token + t * C).to(tl.int64)  # first token of the chunk
        chunk_head = (first_chunk + t).to(tl.int64) * HV + head
        real = i < length - t * C
        in_k = real[:, None] & (key < K)[None, :]
        in_v = real[:, None] & (value < V)[None, :]
        keys = tl.load(k + (row * H + key_head) * K + at_k, mask=in_k, other=0.0)  # [C, BK]
        write = tl.load(v + (row * HV + head) * V + at_v, mask=in_v, other=0.0)  # [C, BV]
        before = state.to(dtype)
        if h is not None:
            tl.store(h + chunk_head * (K * V) + at_s, before, mask=in_state)
        if g is not None:
            coarse, fine = gate_sums(tl.load(g + row * HV + head + i * HV, mask=real, other=0.0))
            since = decays_since(coarse, fine)[:, None]  # e^G
        if o is not None:
            queries = tl.load(q + (row * H + key_head) * K + at_k, mask=in_k, other=0.0)
            out = tl.dot(queries, before, input_precision=PREC)  # [C, BV]
            if scores is not None:
                pairs = tl.load(scores + (row * HV + head) * C + at_c, mask=real[:, None], other=0.0)
            else:
                pairs = tl.dot(queries, tl.trans(keys), input_precision=PREC)
                if g is not None:
                    out *= since
                    pairs *= decays_between(coarse, fine)
                pairs = tl.where(i[:, None] >= i[None, :], pairs, 0.0).to(dtype)
        if inverse is not None:
            read = tl.dot(keys, before, input_precision=PREC)
            if g is not None:
                read *= since
            target = (write.to(tl.float32) - read).to(dtype)
            solve = tl.load(inverse + (row * HV + head) * C + at_c, mask=real[:, None], other=0.0)
            strength = tl.load(beta + row * HV + head + i * HV, mask=real, other=0.0).to(tl.float32)
            error = tl.dot(solve, target, input_precision=PREC)  # E
            if e is not None:
                tl.store(e + (row * HV + head) * V + at_v, error.to(dtype), mask=in_v)
            written = error * strength[:, None]  # U
        else:
            written = write.to(tl.float32)
        if o is not None:
            out = tl.dot(pairs, written.to(dtype), out, input_precision=PREC)
            if scores is None:
                out *= scale
            tl.store(o + (row * HV + head) * V + at_v, out.to(dtype), mask=in_v)
        if g is not None:
            written *= decays_to(coarse, fine, C)[:, None]
            state *= chunk_decay(coarse, fine, C)
        if decay is not None:
            state *= tl.load(decay + chunk_head * K + key, mask=key < K, other=0.0)[:, None]
        state = tl.dot(tl.trans(keys), written.to(dtype), state, input_precision=PREC)
    if final_state is not None:
        tl.store(final_state + state_offset + at_s, state, mask=in_state)


@kernel("chunk_scan")
def chunk_scan_backward(
    q,
    k,
    do,
    g,
    beta,
    inverse,
    scores,
    decay,
    dfinal,
    dv,
    dh,
    dinitial,
    sequence,
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
    """The same programs in reverse: dv, the adjoint of the state behind every chunk, and of the initial one."""
    n_blocks: tl.constexpr = (V + BV - 1) // BV
    block = tl.program_id(0) % n_blocks
    head = tl.program_id(0) // n_blocks % HV
    n = tl.program_id(0) // n_blocks // HV
    token = tl.load(sequence + n * 3)
    length = tl.load(sequence + n * 3 + 1)
    first_chunk = tl.load(sequence + n * 3 + 2)
    key_head = head // (HV // H)
    dtype = do.dtype.element_ty

    i = tl.arange(0, C)
    key = tl.arange(0, BK)
    value = block * BV + tl.arange(0, BV)
    at_k = i[:, None] * (H * K) + key[None, :]
    at_v = i[:, None] * (HV * V) + value[None, :]
    at_c = i[None, :] * (HV * C) + i[:, None]  # transposed
    at_s = key[:, None] * V + value[None, :]
    in_state = (key < K)[:, None] & (value < V)[None, :]
    state_offset = (n * HV + head).to(tl.int64) * (K * V)
    if dfinal is None:
        dstate = tl.zeros([BK, BV], tl.float32)
    else:
        dstate = tl.load(dfinal + state_offset + at_s, mask=in_state, other=0.0)
    n_chunks = tl.cdiv(length, C)
    for step in range(0, n_chunks):
        t = n_chunks - 1 - step
        row = (token + t * C).to(tl.int64)
        chunk_head = (first_chunk + t).to(tl.int64) * HV + head
        real = i < length - t * C
        in_k = real[:, None] & (key < K)[None, :]
        in_v = real[:, None] & (value < V)[None, :]
        queries = tl.load(q + (row * H + key_head) * K + at_k, mask=in_k, other=0.0)  # [C, BK]
        keys = tl.load(k + (row * H + key_head) * K + at_k, mask=in_k, other=0.0)
        dout = tl.load(do + (row * HV + head) * V + at_v, mask=in_v, other=0.0)  # [C, BV]
        after = dstate.to(dtype)
        tl.store(dh + chunk_head * (K * V) + at_s, after, mask=in_state)
        if scores is not None:
            pairs = tl.load(scores + (row * HV + head) * C + at_c, mask=real[None, :], other=0.0)  # P^T
        else:
            pairs = tl.dot(keys, tl.trans(queries), input_precision=PREC) * scale
            if g is not None:
                coarse, fine = gate_sums(tl.load(g + row * HV + head + i * HV, mask=real, other=0.0))
                since = decays_since(coarse, fine)[:, None]  # e^G
                pairs *= decays_between_transposed(coarse, fine)
                dstate *= chunk_decay(coarse, fine, C)
            pairs = tl.where(i[:, None] <= i[None, :], pairs, 0.0).to(dtype)
        if decay is not None:
            dstate *= tl.load(decay + chunk_head * K + key, mask=key < K, other=0.0)[:, None]
            dread = dout
        elif g is not None:
            dread = (dout.to(tl.float32) * (since * scale)).to(dtype)
        else:
            dread = (dout.to(tl.float32) * scale).to(dtype)
        dstate = tl.dot(tl.trans(queries), dread, dstate, input_precision=PREC)
        dwritten = tl.dot(keys, after, input_precision=PREC)  # dU
        if g is not None:
            dwritten *= decays_to(coarse, fine, C)[:, None]
        dwritten = tl.dot(pairs, dout, dwritten, input_precision=PREC)
        if inverse is not None:
            strength = tl.load(beta + row * HV + head + i * HV, mask=real, other=0.0).to(tl.float32)
            solve = tl.load(inverse + (row * HV + head) * C + at_c, mask=real[None, :], other=0.0)  # T^T
            dwritten = tl.dot(solve, (dwritten * strength[:, None]).to(dtype), input_precision=PREC)
            dread = dwritten  # of k by the error
            if g is not None:
                dread *= since
            dstate = tl.dot(tl.trans(keys), (-dread).to(dtype), dstate, input_precision=PREC)
        tl.store(dv + (row * HV + head) * V + at_v, dwritten.to(dtype), mask=in_v)
    if dinitial is not None:
        tl.store(dinitial + state_offset + at_s, dstate, mask=in_state)


@lru_cache(maxsize=256)
def blocks(K: int, V: int, heads: int, dtype: torch.dtype, n_processors: int) -> dict[str, int]:
    """Columns of the state per program, for `heads` states: as many as registers hold and still fill the device."""
    BK = padded(K)
    BV = min(padded(V), max(16, min(64, 8192 // (BK * dtype.itemsize))))
    while BV > 16 and heads * triton.cdiv(V, BV) < n_processors:
        BV //= 2
    return {"BK": BK, "BV": BV, "num_warps": 4, "num_stages": 2 if dtype.itemsize == 2 else 1}


def _sizes(k: Tensor, v: Tensor, tables: Tables) -> tuple[Any, dict[str, Any]]:
    """The grid of a launch, and its arguments besides tensors and scale."""
    H, K = k.shape[2:]
    HV, V = v.shape[2:]
    heads = tables.n_sequences * HV
    options = blocks(K, V, heads, v.dtype, multiprocessors(v.device))
    sizes = {"sequence": tables.sequence, "H": H, "HV": HV, "K": K, "V": V, "C": tables.size}
    return (heads * triton.cdiv(V, options["BV"]),), sizes | {"PREC": precision(v.dtype), **options}


def scan_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tables: Tables,
    scale: float,
    initial_state: Tensor | None,
    keep_states: bool,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    inverse: Tensor | None = None,
    scores: Tensor | None = None,
    decay: Tensor | None = None,
    e: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """o [B, T, HV, V], final state [N, HV, K, V] float32 and, if kept, the state before each chunk [n_chunks, HV, K, V]
    in v's dtype. E is written to `e` [B, T, HV, V] if given."""
    HV, V = v.shape[2:]
    K = k.shape[3]
    o = torch.empty_like(v)
    h = v.new_empty(tables.n_chunks, HV, K, V) if keep_states else None
    final_state = v.new_empty(tables.n_sequences, HV, K, V, dtype=torch.float32)
    grid, sizes = _sizes(k, v, tables)
    chunk_scan_forward[grid](
        q=q, k=k, v=v, g=g, beta=beta, inverse=inverse, scores=scores, decay=decay, initial_state=initial_state,
        o=o, h=h, e=e, final_state=final_state, scale=scale, **sizes,
    )  # fmt: skip
    return o, final_state, h


def scan_states(
    k: Tensor,
    v: Tensor,
    *,
    tables: Tables,
    initial_state: Tensor | None,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    inverse: Tensor | None = None,
    decay: Tensor | None = None,
    e: Tensor | None = None,
) -> Tensor:
    """The states before each chunk (and E) alone, as in `scan_forward`: backward calls it if they were not kept."""
    h = v.new_empty(tables.n_chunks, v.shape[2], k.shape[3], v.shape[3])
    grid, sizes = _sizes(k, v, tables)
    chunk_scan_forward[grid](
        q=None, k=k, v=v, g=g, beta=beta, inverse=inverse, scores=None, decay=decay, initial_state=initial_state,
        o=None, h=h, e=e, final_state=None, scale=1.0, **sizes,
    )  # fmt: skip
    return h


def scan_backward(
    q: Tensor,
    k: Tensor,
    do: Tensor,
    *,
    tables: Tables,
    scale: float,
    dfinal: Tensor | None,
    initial: bool,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    inverse: Tensor | None = None,
    scores: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dv like do, the adjoint dS' of the state behind each chunk [n_chunks, HV, K, V] in do's dtype and, if `initial`,
    that of the initial state [N, HV, K, V] float32. `dfinal`: adjoint of the final state, None for 0."""
    HV, V = do.shape[2:]
    K = k.shape[3]
    dv = torch.empty_like(do)
    dh = do.new_empty(tables.n_chunks, HV, K, V)
    dinitial = do.new_empty(tables.n_sequences, HV, K, V, dtype=torch.float32) if initial else None
    grid, sizes = _sizes(k, do, tables)
    chunk_scan_backward[grid](
        q=q, k=k, do=do, g=g, beta=beta, inverse=inverse, scores=scores, decay=decay, dfinal=dfinal,
        dv=dv, dh=dh, dinitial=dinitial, scale=scale, **sizes,
    )  # fmt: skip
    return dv, dh, dinitial
