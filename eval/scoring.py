"""Log-likelihoods of token sequences under a model: windows that fit its length, batches that fit a budget."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lm.model import HybridLM
from ..lm.model.cache import Cache
from ..lm.model.loss import SLICE, cap


class Window(NamedTuple):
    """What one forward scores: log p(targets | context). `context` starts with BOS, as every training document did."""

    context: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.context + self.targets[:-1]


class TargetScore(NamedTuple):
    """log_likelihood: sum over the targets of log p, in nats. greedy: whether every target is the likeliest token."""

    log_likelihood: float
    greedy: bool


def split_windows(context: Sequence[int], targets: Sequence[int], bos_id: int, max_length: int) -> list[Window]:
    """Cut `context + targets` (no BOS in either) into windows of at most `max_length` input tokens, BOS included.

    Every target is scored once. A window sees BOS and as many of the tokens just before its targets as fit, at least
    one if there is one. One window is enough for max_length targets without a context, or max_length - 1 with one.
    """
    tokens = (*context, *targets)
    windows = []
    start = len(context)
    while start < len(tokens):
        stop = min(len(tokens), start + max_length - (start > 0))
        windows.append(Window((bos_id, *tokens[max(0, stop - max_length) : start]), tokens[start:stop]))
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


def score_windows(model: HybridLM, windows: Sequence[Window], batch_tokens: int) -> Iterator[tuple[int, TargetScore]]:
    """(index, score) of every window, longest contexts first. Call it inside `inference`.

    Windows of one context are neighbours (the answers to one question), and where that saves work their context is run
    once and its state forked for each of them. Raises FloatingPointError when the model gives NaN.
    """
    lengths = [len(window.inputs) for window in windows]
    order = sorted(range(len(windows)), key=lambda i: (-len(windows[i].context), windows[i].context, -lengths[i]))
    for batch in batches(order, lengths, batch_tokens):
        yield from zip(batch, _score_batch(model, [windows[i] for i in batch]), strict=True)


def _score_batch(model: HybridLM, windows: list[Window]) -> list[TargetScore]:
    contexts = list(dict.fromkeys(window.context for window in windows))
    repeated = sum(len(window.context) for window in windows) - sum(map(len, contexts))
    shared = 4 * repeated > sum(len(window.inputs) for window in windows)  # forking has a price of its own
    hidden = _fork_contexts(model, windows, contexts) if shared else _run_whole(model, windows)
    targets = torch.tensor([token for window in windows for token in window.targets], device=model.device)
    log_p, likeliest = _target_log_p(model, hidden, targets)
    counts = [len(window.targets) for window in windows]
    return [
        TargetScore(float(p.double().sum()), bool(best.all()))
        for p, best in zip(log_p.split(counts), likeliest.split(counts), strict=True)
    ]


def _run_whole(model: HybridLM, windows: list[Window]) -> Tensor:
    """Final hidden vector before each target [sum of targets, D], every window computed by itself."""
    hidden, _ = _hidden(model, [window.inputs for window in windows])
    rows = hidden.split([len(window.inputs) for window in windows])
    return torch.cat([row[len(window.context) - 1 :] for row, window in zip(rows, windows, strict=True)])


def _fork_contexts(model: HybridLM, windows: list[Window], contexts: list[tuple[int, ...]]) -> Tensor:
    """The same from one pass over each context; its state is copied for each window that has more than one target."""
    hidden, cache = _hidden(model, contexts, cache=True)
    last = torch.stack([row[-1] for row in hidden.split([len(context) for context in contexts])])
    index = {context: i for i, context in enumerate(contexts)}
    rows = [index[window.context] for window in windows]
    tails = [window.targets[:-1] for window in windows]
    longer = [i for i, tail in enumerate(tails) if tail]
    parts = [last[row, None] for row in rows]
    if longer and cache is not None:
        more, _ = _hidden(model, [tails[i] for i in longer], cache.select([rows[i] for i in longer]))
        for i, part in zip(longer, more.split([len(tails[i]) for i in longer]), strict=True):
            parts[i] = torch.cat((parts[i], part))
    return torch.cat(parts)


def _hidden(model: HybridLM, rows: Sequence[Sequence[int]], cache: Cache | bool = False) -> tuple[Tensor, Cache | None]:
    """Vectors that enter the output head, of `rows` packed end to end: [sum of lengths, D]; and the decoding state."""
    ids = torch.tensor([[token for row in rows for token in row]], device=model.device)
    bounds = F.pad(torch.tensor([len(row) for row in rows], device=model.device).cumsum(0), (1, 0))
    kept: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda _module, _inputs, y: kept.append(y))  # type: ignore[arg-type]
    try:
        output = model(ids, cu_seqlens=bounds, cache=cache or None, logits=False)
    finally:
        hook.remove()
    return kept[0][0], output.cache


def _target_log_p(model: HybridLM, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each target [N] in float32, and whether it is the likeliest; logits exist for a slice at a time."""
    step = max(1, SLICE // model.config.vocab_size)
    log_p, likeliest = [], []
    for h, target in zip(hidden.split(step), targets.split(step), strict=True):
        scores = cap(model.lm_head(h), model.config.logit_softcap).float().log_softmax(-1)
        log_p.append(scores.gather(1, target[:, None])[:, 0])
        likeliest.append(scores.argmax(-1) == target)
    result = torch.cat(log_p)
    if bool(result.isnan().any()):
        raise FloatingPointError(
            "the model gives NaN, so no score would mean anything; check its weights and precision"
        )
    return result, torch.cat(likeliest)
