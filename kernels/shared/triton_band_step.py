"""One token of attention, for decoding: keys read once for a head's whole group, in parts that fill the device."""

import math

import torch
import triton.language as tl
from torch import Tensor

from .band import seen_by_head
from .triton_band import by_rows
from .triton_common import contiguous, kernel, multiprocessors, padded, precision
from .triton_row_attention import LOG2_E, LOWEST

BLOCK = 64  # keys
MAX_PARTS = 64  # all of a query's are weighed at once


@kernel("banded_attention_step", do_not_specialize=["S", "n_parts"])
def band_step(
    q, k, v, gate, seen, parts, sums, k_step, v_step, seen_step, S, scale, n_parts,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """One program: every n_parts-th block of a sequence's keys of one key head, for all queries of the group.

    parts [N, n_parts, H, D]: their softmax's result. sums [N, n_parts, H]: its log_sum, -inf where no key is seen. A
    group without an active query is left unwritten, and its keys unread.
    """
    G: tl.constexpr = H // HK
    part = tl.program_id(0) % n_parts
    head = tl.program_id(0) // n_parts % HK
    n = (tl.program_id(0) // n_parts // HK).to(tl.int64)
    i = tl.arange(0, BM)
    query = head * G + i
    n_active = 1
    if gate is not None:
        weight = tl.load(gate + n * H + query, mask=i < G, other=0.0).to(tl.float32)
        n_active = tl.sum((weight != 0).to(tl.int32), 0)
    if n_active > 0:
        channel = tl.arange(0, BD)[None, :]
        inside = (i < G)[:, None] & (channel < D)
        queries = tl.load(q + (n * H + query)[:, None] * D + channel, mask=inside, other=0.0)
        at_k = k + n * k_step[0] + head.to(tl.int64) * k_step[2] + channel
        at_v = v + n * v_step[0] + head.to(tl.int64) * v_step[2] + channel
        acc = tl.zeros([BM, BD], tl.float32)
        high = tl.full([BM], LOWEST, tl.float32)
        total = tl.zeros([BM], tl.float32)
        for first in range(part * BN, S, n_parts * BN):
            key = first + tl.arange(0, BN)
            there = key < S
            if seen is not None:
                at_seen = seen + n * seen_step[0] + key * seen_step[1] + head * seen_step[2]
                there = tl.load(at_seen, mask=there, other=0) != 0
            in_key = there[:, None] & (channel < D)
            keys = tl.load(at_k + key.to(tl.int64)[:, None] * k_step[1], mask=in_key, other=0.0)
            scores = tl.dot(queries, tl.trans(keys), input_precision=PREC) * (scale * LOG2_E)
            scores = tl.where(there[None, :], scores, float("-inf"))
            higher = tl.maximum(high, tl.max(scores, 1))
            p = tl.exp2(scores - higher[:, None])
            fade = tl.exp2(high - higher)
            total = total * fade + tl.sum(p, 1)
            values = tl.load(at_v + key.to(tl.int64)[:, None] * v_step[1], mask=in_key, other=0.0)
            acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision=PREC)
            high = higher
        none = total == 0
        acc = acc / tl.where(none, 1.0, total)[:, None]
        at = (n * n_parts + part) * H + query
        tl.store(parts + at[:, None] * D + channel, acc, mask=inside)
        tl.store(sums + at, tl.where(none, float("-inf"), high + tl.log2(tl.where(none, 1.0, total))), mask=i < G)


@kernel("banded_attention_step", do_not_specialize=["n_parts"])
def band_step_merge(
    parts, sums, gate, o, n_parts,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """One program: one query's parts weighed against each other; 0 where it is not active."""
    n = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    channel = tl.arange(0, BD)
    weight = 1.0
    if gate is not None:
        weight = tl.load(gate + n * H + head).to(tl.float32)
    out = tl.zeros([BD], tl.float32)
    if weight != 0:
        part = tl.arange(0, BP)
        at = (n * n_parts + part) * H + head
        log_sum = tl.load(sums + at, mask=part < n_parts, other=float("-inf"))
        share = tl.exp2(log_sum - tl.max(log_sum, 0))
        inside = (part < n_parts)[:, None] & (channel < D)[None, :]
        found = tl.load(parts + at[:, None] * D + channel[None, :], mask=inside, other=0.0)
        out = tl.sum(found * (share * (weight / tl.sum(share, 0)))[:, None], 0)
    tl.store(o + (n * H + head) * D + channel, out.to(o.dtype.element_ty), mask=channel < D)


def attention_step(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, seen: Tensor | None) -> Tensor:
    """One query of each sequence [N, H, D] over its keys [N, S, H_kv, D]; gate None is 1, seen None is all."""
    N, H, D = q.shape
    S, HK = k.shape[1:3]
    q, gate = contiguous(q, gate)
    k, v = by_rows(k), by_rows(v)
    seen = None if seen is None else seen_by_head(seen.view(torch.uint8), HK)
    wanted = math.ceil(2 * multiprocessors(q.device) / max(1, N * HK))
    n_parts = max(1, min(wanted, math.ceil(S / BLOCK), MAX_PARTS))
    parts, sums = (q.new_empty(N, n_parts, H, *rest, dtype=torch.float32) for rest in ((D,), ()))
    o = torch.empty_like(q)
    with torch.cuda.device_of(q):
        band_step[(N * HK * n_parts,)](
            q=q, k=k, v=v, gate=gate, seen=seen, parts=parts, sums=sums, k_step=k.stride()[:3], v_step=v.stride()[:3],
            seen_step=None if seen is None else seen.stride(), S=S, scale=D**-0.5, n_parts=n_parts,
            H=H, HK=HK, D=D, BD=padded(D), BM=padded(H // HK), BN=BLOCK, PREC=precision(q.dtype), num_warps=4,
        )  # fmt: skip
        band_step_merge[(N * H,)](
            parts=parts, sums=sums, gate=gate, o=o, n_parts=n_parts,
            H=H, D=D, BD=padded(D), BP=1 << (n_parts - 1).bit_length(), num_warps=4,
        )  # fmt: skip
    return o
