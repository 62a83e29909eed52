"""Head-routed attention, every head computed and the inactive ones masked: what other backends are tested against."""

import math

import torch
from torch import Tensor

from ..shared.checks import state_dtype
from .arguments import RoutedArguments, RoutedStepArguments


def run(arguments: RoutedArguments) -> Tensor:
    """gate_ti sum_j softmax_j(q_ti k_j / sqrt(D)) v_j over the keys that query t of head i sees.

    Computed in float32, or float64 if q is, one sequence at a time, with the whole matrix of scores.
    """
    q, k, v, gate, sink, window, sequences = arguments
    dtype = state_dtype(q.dtype)
    q, k, v, gate = (x.to(dtype).flatten(0, 1) for x in (q, k, v, gate))  # [B*T, ...]
    starts = sequences.starts
    outputs = []
    for n in range(len(sequences)):
        tokens = slice(starts[n], starts[n + 1])
        seen = _seen(starts[n + 1] - starts[n], sink, window, q.device)  # [1 or H_kv, T, T]
        o = _attend(q[tokens], k[tokens], v[tokens], seen, arguments.scale)
        outputs.append(_gated(o, gate[tokens]))
    return torch.cat(outputs).view(arguments.q.shape).to(arguments.q.dtype)


def step(arguments: RoutedStepArguments) -> Tensor:
    """One query of each sequence over its keys."""
    q, k, v, gate, seen = arguments
    dtype = state_dtype(q.dtype)
    mask = q.new_ones(1, 1, k.shape[1], dtype=torch.bool) if seen is None else seen[:, None]  # [N or 1, 1, S]
    rows = zip(*(x.to(dtype) for x in (q, k, v)), mask.expand(len(q), -1, -1), strict=True)
    o = [_attend(q[None], k, v, seen[None], q.shape[-1] ** -0.5)[0] for q, k, v, seen in rows]
    return _gated(torch.stack(o) if o else q.to(dtype), gate.to(dtype)).to(q.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """q [T, H, D], k and v [S, H_kv, D], seen [1 or H_kv, T, S] -> [T, H, D]."""
    heads = q.unflatten(1, (k.shape[1], -1))  # [T, H_kv, H / H_kv, D]
    scores = torch.einsum("thgd,shd->hgts", heads, k) * scale
    weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    return torch.einsum("hgts,shd->thgd", weights, v).flatten(1, 2)


def _gated(o: Tensor, gate: Tensor) -> Tensor:
    """o [T, H, D] times gate [T, H]; of an inactive head nothing is left, no gradient either."""
    return o.masked_fill((gate == 0)[..., None], 0) * gate[..., None]


def _seen(T: int, sink: tuple[int, ...], window: tuple[int, ...], device: torch.device) -> Tensor:
    """Which keys a query at position t of a sequence sees [H_kv, T, T], or [1, T, T] where all heads see the same."""
    t, j = torch.arange(T, device=device)[:, None], torch.arange(T, device=device)
    if not window:
        return (j <= t)[None]
    per_head = [(j <= t) & ((t - j < last) | (j < first)) for first, last in zip(sink, window, strict=True)]
    return torch.stack(per_head)
