"""What other libraries put in the place of a module is what computes."""

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


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MIXERS if name != "gated_conv"])
def test_dynamic_quantisation_replaces_every_projection(name):
    model, ids = build(pattern=[name]).eval(), tokens(2, 9) % 61
    expected = model(ids).logits
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert_close(quantized(ids).logits, expected, 0.2)
