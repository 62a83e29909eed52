"""Which heads of a layer matter most, by a calibration text, so that those are the shared ones.

    norm       mean over tokens of ||o_i W_o^i||, what the head adds to the residual stream
    gradient   mean over stretches of |dL/dg_i| at g = 1, g_i a factor on the head's output (Michel et al. 2019, arXiv
               1905.10650): a first-order estimate of what ablation measures, at the cost of one backward pass
    ablation   L without the head less L with all of them, head by head, exactly; layers below it are not run again

o_i is the head's output, W_o^i its rows of the output projection, L the cross entropy of the text. All heads are in
use, those of other layers too: how a token's choice among them will turn out is not part of it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...eval.forward.long_context import target_scores
from ...eval.forward.scoring import inference
from ...eval.positions.reading import Stretches
from ...lm.mixers.attention.attention import Attention
from ...lm.model import HybridLM
from ...lm.parts.context import Context

Scores = list[Tensor]
"""Of each layer, one number per head, float64."""


def ranked(model: HybridLM, stretches: Stretches, by: str) -> Scores:
    """The scores of a model with attention alone, all heads in use. by: see the module."""
    return METHODS[by](model, stretches)


def shared_sets(scores: Scores, shared: int, unit: int) -> list[list[int]]:
    """Each layer's `shared` heads with the highest scores, or whole groups of `unit` heads by their sums; of equal ones
    the first."""
    return [_highest(own.view(-1, unit).sum(-1), shared // unit, unit) for own in scores]


def _highest(scores: Tensor, n: int, unit: int) -> list[int]:
    chosen = sorted(scores.argsort(descending=True, stable=True)[:n].tolist())
    return [unit * i + j for i in chosen for j in range(unit)]


def _rows(model: HybridLM, stretches: Stretches) -> Iterator[Tensor]:
    """Each stretch behind the token that stands before a text, [1, T + 1]."""
    for row in stretches.rows:
        yield torch.tensor([[stretches.prefix_id, *row]], device=model.device)


def _attentions(model: HybridLM) -> list[Attention]:
    return [mixer for mixer in model.mixers() if isinstance(mixer, Attention)]


@contextmanager
def _before(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What enters the module goes through `change` first."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]),)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _norm(model: HybridLM, stretches: Stretches) -> Scores:
    mixers = _attentions(model)
    sums = [torch.zeros(mixer.n_heads, dtype=torch.float64) for mixer in mixers]

    def watch(mixer: Attention, total: Tensor) -> Callable[[Tensor], Tensor]:
        blocks = mixer.o_proj.weight.split(mixer.head_dim, 1)  # [D, head_dim] of each head

        def add(o: Tensor) -> Tensor:
            heads = o[:, 1:].split(mixer.head_dim, -1)  # not those of BOS, which many heads rest on
            norms = [(own @ w.T).norm(dim=-1).sum() for own, w in zip(heads, blocks, strict=True)]
            total.add_(torch.stack(norms).double().cpu())
            return o

        return add

    with inference(model), ExitStack() as stack:
        for mixer, total in zip(mixers, sums, strict=True):
            stack.enter_context(_before(mixer.o_proj, watch(mixer, total)))
        for ids in _rows(model, stretches):
            model(ids, logits=False)
    return [total / sum(map(len, stretches.rows)) for total in sums]


def _gradient(model: HybridLM, stretches: Stretches) -> Scores:
    mixers = _attentions(model)
    sums = [torch.zeros(mixer.n_heads, dtype=torch.float64) for mixer in mixers]
    gates = [torch.ones(mixer.n_heads, device=model.device, requires_grad=True) for mixer in mixers]

    def weigh(mixer: Attention, gate: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda o: o * gate.repeat_interleave(mixer.head_dim).to(o.dtype)

    with ExitStack() as stack:
        for mixer, gate in zip(mixers, gates, strict=True):
            stack.enter_context(_before(mixer.o_proj, weigh(mixer, gate)))
        for ids in _rows(model, stretches):
            loss = model(ids, labels=ids, logits=False).loss
            for total, slope in zip(sums, torch.autograd.grad(loss, gates), strict=True):
                total += slope.abs().double().cpu()
    return [total / len(stretches.rows) for total in sums]


def _ablation(model: HybridLM, stretches: Stretches) -> Scores:
    mixers = _attentions(model)
    sums = [torch.zeros(mixer.n_heads, dtype=torch.float64) for mixer in mixers]
    with inference(model):
        for ids in _rows(model, stretches):
            output = model(ids, logits=False, layers=True)
            dense = _cost(model, output.hidden, ids)
            for layer, total in enumerate(sums):
                total += _cost(model, _without_each(model, layer, output.layers[layer]), ids) - dense
    return [total / sum(map(len, stretches.rows)) for total in sums]


def _without_each(model: HybridLM, layer: int, x: Tensor) -> Tensor:
    """What the output head reads with one head of `layer` switched off, which x [1, T, D] enters: [heads, T, D]."""
    mixer = _attentions(model)[layer]
    kept = 1 - torch.eye(mixer.n_heads, device=x.device, dtype=x.dtype).repeat_interleave(mixer.head_dim, 1)[:, None]
    x = x.expand(mixer.n_heads, -1, -1)
    context = Context.dense(len(x), x.shape[1], None, x.device)
    with _before(mixer.o_proj, lambda o: o * kept):
        for block in list(model.layers())[layer:]:
            x = block(x, context).y
    return model.norm(x)


def _cost(model: HybridLM, hidden: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of ids [1, T] in nats, all but the first token, under each of hidden [N, T, D]: [N]."""
    costs, _ = target_scores(model, hidden[:, :-1], ids[:, 1:].expand(len(hidden), -1))
    return costs.double().sum(1).cpu()


METHODS: dict[str, Callable[[HybridLM, Stretches], Scores]] = {
    "norm": _norm,
    "gradient": _gradient,
    "ablation": _ablation,
}
