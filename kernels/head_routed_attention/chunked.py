"""Head-routed attention in PyTorch: the active queries of a block of tokens gathered, against the keys up to its end.

PyTorch's attention under a mask computes the full square, so queries are cut into blocks of tokens: what is computed
behind the diagonal is half a block per query. Heads are computed side by side, as wide as the busiest of the block.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.band import visible
from ..shared.sequences import tracing
from .arguments import RoutedArguments

BLOCK = 256  # tokens whose queries are computed together


def run(arguments: RoutedArguments) -> Tensor:
    """As the reference, in the dtype of q."""
    q, k, v, gate, _, _, sequences = arguments
    if sequences.equal:
        n = len(sequences)
        rows = [x.reshape(n, sequences.longest, *x.shape[2:]) for x in (q, k, v, gate)]
        return _attend(rows, arguments).view(q.shape)
    bounds = [(a, b) for a, b in itertools.pairwise(sequences.starts) if b > a]
    return torch.cat([_attend([x[:, a:b] for x in (q, k, v, gate)], arguments) for a, b in bounds], 1)


def _attend(rows: list[Tensor], arguments: RoutedArguments) -> Tensor:
    """Of one length: q [N, T, H, D], k and v [N, T, H_kv, D], gate [N, T, H] -> [N, T, H, D]."""
    q, k, v, gate = rows
    blocks = range(0, q.shape[1], BLOCK)
    return torch.cat([_block(a, q[:, a : a + BLOCK], k, v, gate[:, a : a + BLOCK], arguments) for a in blocks], 1)


def _block(a: int, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, arguments: RoutedArguments) -> Tensor:
    """The queries of the tokens from a on, q [N, C, H, D], against the keys up to the last of them."""
    (N, C, H, D), kv_heads, r = q.shape, k.shape[2], arguments.group
    active = _by_key_head(gate.detach() != 0, kv_heads)  # [N, H_kv, C r]
    width = C * arguments.group if tracing() else int(active.sum(-1).amax())
    order = active.byte().argsort(stable=True, descending=True)[..., :width]  # the active ones first, by token
    t, index = a + order // r, order[..., None].expand(-1, -1, -1, D)
    queries = _by_key_head(q, kv_heads).gather(2, index)
    first = 0 if not arguments.window or any(arguments.sink) else max(0, a - max(arguments.window) + 1)
    keys, values = (x[:, first : a + C].transpose(1, 2) for x in (k, v))  # [N, H_kv, S, D]
    seen = visible(t, torch.arange(first, a + C, device=q.device), arguments.sink, arguments.window)
    o = F.scaled_dot_product_attention(queries, keys, values, seen)
    rows = o.new_zeros(N, kv_heads, C * r, D).scatter(2, index, o)
    o = rows.unflatten(2, (C, r)).transpose(1, 2).reshape(N, C, H, D)
    return (o.masked_fill((gate == 0)[..., None], 0) * gate[..., None]).to(q.dtype)


def _by_key_head(x: Tensor, kv_heads: int) -> Tensor:
    """[N, C, H, ...] -> [N, H_kv, C H / H_kv, ...], tokens outside, a group's heads inside."""
    return x.unflatten(2, (kv_heads, -1)).transpose(1, 2).flatten(2, 3)
