"""What other libraries put in the place of a module is what computes."""

import copy

import pytest
import torch
from torch import nn

from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close


class Adapter(nn.Module):
    """A low-rank addition to a linear layer, whose weight it shows as its own, as adapters do."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 2))

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_an_adapter_on_the_head_counts_in_the_loss_with_and_without_logits(softcap):
    model, ids = build(pattern=["attention"], logit_softcap=softcap, z_loss=1e-3), tokens(2, 9) % 61
    plain = model(ids, labels=ids, logits=False).loss
    model.lm_head = Adapter(model.lm_head)
    losses = [model(ids, labels=ids, logits=logits).loss for logits in (False, True)]
    assert_close(losses[0], losses[1], 1e-6)
    assert abs(losses[0] - plain) > 0.1
    losses[0].backward()
    assert model.lm_head.b.grad is not None and model.lm_head.b.grad.abs().sum() > 0


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(head: nn.Linear) -> None:
    nn.utils.parametrize.register_parametrization(head, "weight", Twice())


def forward_replaced(head: nn.Linear) -> None:
    original = head.forward
    head.forward = lambda x: 2 * original(x)


def biased(head: nn.Linear) -> None:
    head.bias = nn.Parameter(torch.arange(61.0) / 61)


WRAPPED = {
    "hook": lambda head: head.register_forward_hook(lambda module, given, y: 2 * y),
    "pre-hook": lambda head: head.register_forward_pre_hook(lambda module, given: (2 * given[0],)),
    "parametrised": parametrized,
    "forward replaced": forward_replaced,
    "biased": biased,
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_whatever_wraps_the_head_counts_in_the_loss(wrap):
    model, ids = build(pattern=["attention"]), tokens(2, 9) % 61
    plain = model(ids, labels=ids).loss
    WRAPPED[wrap](model.lm_head)
    logits = model(ids).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(expected - plain) > 1e-3
    for kept in (False, True):
        assert_close(model(ids, labels=ids, logits=kept).loss, expected, 1e-6)


@torch.no_grad()
def test_whatever_wraps_the_head_counts_in_decoding_of_few_rows():
    for wrap in WRAPPED.values():
        model, hidden = build(pattern=["attention"]), torch.randn(6, 32)
        wrap(model.lm_head)
        assert_close(model.head(hidden), model.lm_head(hidden), 1e-6)


@pytest.mark.parametrize("name", MIXERS)
def test_adapters_on_every_projection_are_what_computes(name):
    model, ids = build(pattern=[name], tie_embeddings=False), tokens(2, 9) % 61
    merged = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            adapter = Adapter(module)
            model.set_submodule(path, adapter)
            with torch.no_grad():
                adapter.a.mul_(0.1)
                merged.get_submodule(path).weight.add_(adapter.b @ adapter.a)
    for logits in (True, False):
        losses = [m(ids, labels=ids, logits=logits).loss for m in (model, merged)]
        assert_close(losses[0], losses[1], 1e-5)
    losses[0].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.endswith((".a", ".b")))


@torch.no_grad()
@pytest.mark.parametrize("name", MIXERS)
def test_dynamic_quantisation_replaces_every_projection(name):
    model, ids = build(pattern=[name]).eval(), tokens(2, 9) % 61
    expected = model(ids).logits
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert_close(quantized(ids).logits, expected, 0.2)
