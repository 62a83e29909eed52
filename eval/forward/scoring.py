"""Log-likelihoods of token sequences under a model: windows that fit its length, batches that fit a budget.

What windows begin with alike is computed once (see `prefix_tree`) and the decoding state forked where they part. This
suits every mixer: keys and values are copied like a recurrent state, which could not be rewound.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...lm.model import HybridLM
from ...lm.model.cache import Cache
from ...lm.model.loss import row_slices
from ...lm.parts.errors import NaNError
from .budgets import SLICE, state_tokens
from .prefix_tree import Node, grow, separate


class Window(NamedTuple):
    """What one forward scores: log p(targets | context). `context` starts as the model's prompts do, most with BOS."""

    context: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.context + self.targets[:-1]


class TargetScore(NamedTuple):
    """log_likelihood: sum over the targets of log p, in nats. greedy: whether every target is the likeliest token."""

    log_likelihood: float
    greedy: bool


def split_windows(
    context: Sequence[int], targets: Sequence[int], front: Sequence[int], max_length: int, prefix_id: int | None = None
) -> list[Window]:
    """Cut `context + targets` into windows of at most `max_length` input tokens, `front` included.

    Every target is scored once. A window sees `front` and as many of the tokens just before its targets as fit, at
    least one if there is one. One window behind a single BOS is enough for max_length targets without a context, or
    max_length - 1 with one. prefix_id: what stands before the first token of all where there is nothing in front.
    """
    tokens = (*context, *targets)
    windows = []
    start = len(context)
    while start < len(tokens):
        head = tuple(front) or (() if start or prefix_id is None else (prefix_id,))
        room = max_length + 1 - len(head)  # tokens of a window behind its head: the last one is not an input
        stop = min(len(tokens), start + room - (start > 0))
        windows.append(Window((*head, *tokens[max(0, stop - room) : start]), tokens[start:stop]))
        start = stop
    return windows


def batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in the given order, in batches whose rows padded to the longest hold at most `batch_tokens` tokens."""
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], lengths[i]
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def inference(model: HybridLM) -> Iterator[None]:
    """No gradients and evaluation mode inside; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class NaNScore(NaNError):
    """The model gave NaN for a target of window number `window`."""

    def __init__(self, window: int):
        super().__init__("the model gives NaN, so no score would mean anything; check its weights and precision")
        self.window = window


def score_windows(
    model: HybridLM, windows: Sequence[Window], batch_tokens: int, share_prefixes: bool = True
) -> Iterator[tuple[int, TargetScore]]:
    """(index, score) of every window, long inputs first. Call it inside `inference`.

    A forward holds at most `batch_tokens` tokens: rows padded to the longest, with what their states have seen, which
    count for no less than they take (`memory.state_tokens`). Each of the tree's DEPTH levels keeps the states of one
    batch at most. share_prefixes=False runs every window by itself, to measure what sharing saves. Raises NaNScore.
    """
    inputs = [window.inputs for window in windows]
    forest = grow(inputs) if share_prefixes else separate(inputs)
    parts: dict[int, list[TargetScore]] = defaultdict(list)
    for i, part, last in _descend(model, windows, [(node, 0) for node in forest], None, batch_tokens):
        parts[i].append(part)
        if last:
            yield i, total(parts.pop(i))


def total(parts: Sequence[TargetScore]) -> TargetScore:
    """The score of targets that were scored in parts."""
    return TargetScore(sum(part.log_likelihood for part in parts), all(part.greedy for part in parts))


def _descend(
    model: HybridLM, windows: Sequence[Window], nodes: list[tuple[Node, int]], state: Cache | None, batch_tokens: int
) -> Iterator[tuple[int, TargetScore, bool]]:
    """Scores of windows on `nodes`, each with its row in `state`, and below: (window, part, whether it is the last)."""
    least = state_tokens(model) if state or any(node.children for node, _ in nodes) else 1
    ends = [max(node.end, least) for node, _ in nodes]
    order = sorted(range(len(nodes)), key=lambda i: (not nodes[i][0].children, -ends[i]))
    for batch in batches(order, ends, batch_tokens):
        chosen = [nodes[i] for i in batch]
        past = state.select([row for _, row in chosen]) if state else any(node.children for node, _ in chosen)
        hidden, after = _run(model, [node.tokens for node, _ in chosen], past)
        yield from _score_nodes(model, windows, [node for node, _ in chosen], hidden)
        below = [(child, row) for row, (node, _) in enumerate(chosen) for child in node.children]
        if below:
            del past, hidden
            yield from _descend(model, windows, below, after, batch_tokens)


def _run(model: HybridLM, rows: Sequence[Sequence[int]], cache: Cache | bool) -> tuple[Tensor, Cache | None]:
    """Vectors that enter the output head, of `rows` packed end to end: [sum of lengths, D]; and the decoding state."""
    ids = torch.tensor([[token for row in rows for token in row]], device=model.device)
    bounds = F.pad(torch.tensor([len(row) for row in rows], device=model.device).cumsum(0), (1, 0))
    output = model(ids, cu_seqlens=bounds, cache=cache or None, logits=False)
    return output.hidden[0], output.cache


class _Part(NamedTuple):
    """Targets of one window that follow on tokens of one node."""

    window: int
    targets: tuple[int, ...]
    rows: range  # of each target, among the positions whose logits are needed
    last: bool


def _score_nodes(
    model: HybridLM, windows: Sequence[Window], nodes: list[Node], hidden: Tensor
) -> Iterator[tuple[int, TargetScore, bool]]:
    """Scores of the targets that follow on the nodes' tokens [sum of lengths, D]; each position's logits exist once."""
    needed: list[int] = []  # indices into hidden
    parts: list[_Part] = []
    offset = 0
    for node in nodes:
        spans = [(i, *_span(windows[i], node)) for i in node.members]
        spans = [(i, first, stop) for i, first, stop in spans if first < stop]
        if spans:
            lowest, highest = min(first for _, first, _ in spans), max(stop for *_, stop in spans)
            shift = len(needed) - lowest
            needed += range(offset + lowest - node.start, offset + highest - node.start)
            for i, first, stop in spans:
                skip = len(windows[i].context) - 1
                end = skip + len(windows[i].targets)
                targets = windows[i].targets[first - skip : stop - skip]
                parts.append(_Part(i, targets, range(shift + first, shift + stop), stop == end))
        offset += len(node.tokens)
    if not parts:
        return
    rows = torch.tensor([row for part in parts for row in part.rows], device=hidden.device)
    targets = torch.tensor([token for part in parts for token in part.targets], device=hidden.device)
    scored = target_log_p(model, hidden[torch.tensor(needed, device=hidden.device)], rows, targets)
    log_p, likeliest = (column.tolist() for column in scored)
    at = 0
    for part in parts:
        here = slice(at, at := at + len(part.targets))
        score = TargetScore(sum(log_p[here]), all(likeliest[here]))
        if math.isnan(score.log_likelihood):
            raise NaNScore(part.window)
        yield part.window, score, part.last


def _span(window: Window, node: Node) -> tuple[int, int]:
    """Positions first to stop - 1 in the input that have a target of `window` behind them and lie on `node`."""
    first = len(window.context) - 1
    return max(first, node.start), min(first + len(window.targets), node.end)


def target_log_p(model: HybridLM, hidden: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p in float32 of `targets` [N] behind `hidden` [M, D] at `rows` [N], and whether each is the likeliest token.

    Logits exist for a slice of the rows at a time.
    """
    log_p = torch.empty(len(rows), device=hidden.device)
    likeliest = torch.empty(len(rows), dtype=torch.bool, device=hidden.device)
    for part in row_slices(len(hidden), model.config.vocab_size, SLICE):
        scores = model.head(hidden[part]).float().log_softmax(-1)
        [mine] = torch.where((rows >= part.start) & (rows < part.stop))
        row, target = rows[mine] - part.start, targets[mine]
        log_p[mine] = scores[row, target]
        likeliest[mine] = scores.argmax(-1)[row] == target
    return log_p, likeliest
