"""Perplexity by position in a long text: does context still help beyond the length that a model was trained at?"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...lm.model.cache import Cache
from ...lm.recipe.eval import Mode
from ..forward.long_context import CHUNK, length_limit, nan_traced, run_chunks, target_scores
from ..forward.scoring import inference
from .reading import Reading, Span, Stretches
from .results import Bucket, Curve

if TYPE_CHECKING:
    from ...lm.model import HybridLM


def measure_positions(model: "HybridLM", stretches: Stretches, reading: Reading, *, batch_tokens: int = 8192) -> Curve:
    """-log p of every token of a text's stretches, by position in the stretch.

    Each stretch is a document of its own, behind BOS. batch_tokens: tokens of a forward. Memory: activations of
    `batch_tokens` tokens, a slice of their logits, and the decoding state. bits_per_byte counts the bytes of the
    decoded tokens. Raises ConfigError for a reading that cannot be.
    """
    reading.check(model, stretches)
    nats, places, n_beyond = [], [], 0
    limit = length_limit(model.config) or math.inf
    with inference(model):
        for rows in _batches(stretches.rows, max(1, batch_tokens // CHUNK)):
            plan = reading.plan(len(rows[0]), stretches.front)
            ids = torch.tensor([[stretches.prefix_id, *row] for row in rows], device=model.device)
            with nan_traced(model, ids):
                nats.append(_score(model, ids, plan, reading.mode, stretches.front).flatten())
            places.append(torch.arange(len(rows[0])).repeat(len(rows)))
            n_beyond += len(rows) * sum(max(0, min(s.stop - s.start, s.stop - s.first - limit)) for s in plan)
    cost, place = torch.cat(nats), torch.cat(places)
    total = float(cost.sum())
    return Curve(
        text=stretches.name,
        mode=reading.mode,
        window=stretches.longest if reading.mode == "whole" else reading.window,
        bytes=stretches.bytes,
        tokens=len(cost),
        nats=total,
        bits_per_byte=total / math.log(2) / max(stretches.bytes, 1),
        beyond=int(n_beyond),
        buckets=_buckets(cost, place, reading.buckets, stretches.longest),
        stride=reading.new_tokens if reading.mode == "sliding" else None,
    )


def _batches(rows: list[list[int]], size: int) -> Iterable[list[list[int]]]:
    """Rows of equal length side by side; only the last row can be shorter."""
    whole = [row for row in rows if len(row) == len(rows[0])]
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
    if len(whole) < len(rows):
        yield rows[-1:]


def _score(model: "HybridLM", ids: Tensor, plan: list[Span], mode: Mode, front: bool) -> Tensor:
    """-log p of ids[:, 1:] [B, n], float64 on the CPU; ids [B, n + 1] start with BOS, and windows do if `front`."""
    nats = torch.zeros(len(ids), ids.shape[1] - 1, dtype=torch.float64)
    cache = model.new_cache(len(ids))
    for span in plan:
        read = ids[:, span.first : span.stop].clone()
        if span.first:
            cache = _carried(model, cache) if mode == "carry" else model.new_cache(len(ids))
            if mode != "carry" and front:
                read[:, 0] = ids[:, 0]  # BOS, which every document of the training began with
        for offset, hidden in run_chunks(model, read, cache):
            skip = max(0, span.start - span.first - offset)  # read before, scored before
            start = span.first + offset + skip
            if skip < hidden.shape[1]:
                target = ids[:, start + 1 : start + 1 + hidden.shape[1] - skip]
                cost, _ = target_scores(model, hidden[:, skip:], target)
                nats[:, start : start + cost.shape[1]] = cost.double().cpu()
    return nats


def _carried(model: "HybridLM", cache: Cache) -> Cache:
    """The states of fixed size as they are; empty ones, and position 0, for attention."""
    n, dtype = len(cache.lengths), model.embed.weight.dtype
    layers = [
        layer if mixer.constant_state else mixer.new_state(n, dtype, model.device)
        for layer, mixer in zip(cache.layers, model.mixers(), strict=True)
    ]
    return cache.handed_on(layers, [0] * n)


def _buckets(cost: Tensor, place: Tensor, width: int, longest: int) -> list[Bucket]:
    found = []
    for start in range(0, longest, width):
        chosen = cost[(place >= start) & (place < start + width)]
        stderr = float(chosen.std()) / math.sqrt(len(chosen)) if len(chosen) > 1 else None
        found.append(Bucket(start, min(start + width, longest), float(chosen.mean()), stderr, len(chosen)))
    return found
