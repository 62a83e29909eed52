"""The active (token, head) pairs of each sequence and key head in order, for the kernels of shared/triton_band_kernels.

`order` [H_kv, B * T * G] int32 holds each sequence's pairs t * G + i, key head by key head: the active ones first, by
token, then the others. So a tile of rows has all heads of a group and about as many tokens as it needs; rows behind the
active ones are answered with 0, and no output is written twice. `count` [N, H_kv] int32: active pairs of a sequence.
`before` [H_kv, B * T] int32: those of the tokens before a token, which is the first row that sees its key.
"""

import triton.language as tl

from ..shared.triton_band_kernels import at_first, at_pairs, in_table
from ..shared.triton_common import kernel


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
    gate = at_first(gate, start, head * G, gate_step, T)
    order += in_table(start, head, n_tokens) * G
    before += in_table(start, head, n_tokens)
    active = 0
    for first in range(0, n_pairs, BLOCK):
        pair = first + tl.arange(0, BLOCK)
        there = pair < n_pairs
        weight = tl.load(gate + at_pairs(pair, gate_step, G), mask=there, other=0.0)
        on = (weight.to(tl.float32) != 0).to(tl.int32)
        earlier = active + tl.cumsum(on, 0) - on
        tl.store(order + tl.where(on > 0, earlier, n_pairs - 1 - (pair - earlier)), pair, mask=there)
        tl.store(before + pair // G, earlier, mask=there & (pair % G == 0))
        active += tl.sum(on, 0)
    tl.store(count + n * HK + head, active)
