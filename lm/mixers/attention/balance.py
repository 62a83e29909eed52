"""How evenly routed heads are used: the balance loss, and what a step reports of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.shared.sequences import HOST
from ...parts.context import Context
from .head_options import BalanceConfig


def balance_loss(p: Tensor, used: Tensor, sequences: Context, options: BalanceConfig) -> Tensor:
    """L = sum_i P_i f_i, see `BalanceConfig`, times the number of heads if scaled, without its weight.

    p: the router's softmax [B, T, R]; used: which were chosen [B, T, R], bool. f has no gradient, so L is a sum of p
    with weights that whole numbers make: the same bits in any order of summation.
    """
    p = p.to(torch.promote_types(p.dtype, torch.float32))
    share = _share_of_call if options.over == "micro_batch" else _share_of_documents
    loss = (p * share(used.to(p.dtype), sequences)).sum()
    return p.shape[-1] * loss if options.form == "scaled" else loss


def _share_of_call(used: Tensor, sequences: Context) -> Tensor:
    """f / tokens, [R]."""
    tokens = used.shape[0] * used.shape[1]
    return used.sum((0, 1)) / tokens**2


def _share_of_documents(used: Tensor, sequences: Context) -> Tensor:
    """f / tokens of the token's document, times the document's part of the call's targets, [B, T or 1, R]."""
    if not sequences.packed:
        batch, T = used.shape[:2]
        return used.sum(1, keepdim=True) / (batch * T**2)
    documents = sequences.once(_documents)
    count = used.new_zeros(len(sequences), used.shape[-1]).index_add(0, documents.of, used[0])
    return (count * documents.weight[:, None]).index_select(0, documents.of)[None]


class _Documents(NamedTuple):
    of: Tensor  # each token's document [T]
    weight: Tensor  # of each document [N], its part of all targets by its tokens squared


def _documents(sequences: Context) -> _Documents:
    lengths = torch.tensor(sequences.lengths, device=HOST)
    of = torch.arange(len(lengths), device=HOST).repeat_interleave(lengths)
    weight = _targets(lengths).double() / (_targets(lengths).sum().clamp(min=1) * lengths.clamp(min=1) ** 2)
    return _Documents(of.to(sequences.device), weight.float().to(sequences.device))


def _targets(lengths: Tensor) -> Tensor:
    """All tokens but the one that opens the document."""
    return (lengths - 1).clamp(min=0)


def _n_targets(sequences: Context) -> int:
    return sum(max(length - 1, 0) for length in sequences.lengths)


SUMS = 4  # tokens, targets, balance loss by targets, entropy by tokens


def routing_stats(p: Tensor, used: Tensor, loss: Tensor, norms: Tensor | None, sequences: Context) -> dict[str, Tensor]:
    """Sums over the call in one tensor, which processes add up at once: `SUMS`, uses of each choice [R], norms [H]."""
    p = p.to(torch.promote_types(p.dtype, torch.float32)).flatten(0, 1)
    tokens, targets = len(p), sequences.once(_n_targets)
    entropy = torch.special.entr(p).sum()
    sums = [entropy.new_tensor(tokens), entropy.new_tensor(targets), loss * targets, entropy]
    parts = [torch.stack(sums), used.flatten(0, 1).sum(0)]
    if norms is not None:
        parts.append(norms.flatten(0, 1).sum(0))
    return {"routing": torch.cat([part.double() for part in parts])}


def routing_telemetry(
    stats: dict[str, Tensor], shared: int, unit: int, place: Sequence[int]
) -> dict[str, float | list[float]]:
    """Of a step's sums, by head: `activation`, the share of tokens that use it, and `query_norm`, its mean, if norms
    were summed; `balance`, the loss without its weight; `router_entropy` in nats; `effective_heads`, exp of the entropy
    of the routed heads' mean use: their number if all are used alike, those of a token if always the same are.
    """
    sums = stats["routing"]
    (tokens, targets, loss, entropy), rest = sums[:SUMS].tolist(), sums[SUMS:]
    choices = (len(place) - shared) // unit
    use = (rest[:choices] / tokens).repeat_interleave(unit)
    mean = use / use.sum()
    in_order = [1.0] * shared + use.tolist()
    found: dict[str, float | list[float]] = {
        "activation": [in_order[i] for i in place],
        "balance": loss / max(targets, 1),
        "router_entropy": entropy / tokens,
        "effective_heads": float(torch.special.entr(mean).sum().exp()),
    }
    if len(rest) > choices:
        found["query_norm"] = (rest[choices:] / tokens).tolist()
    return found
