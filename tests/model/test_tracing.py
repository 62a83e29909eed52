"""Tensors that are none: what is made while a model is traced or faked serves no real call after it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.contracts.harness import Logits
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close


@torch.no_grad()
def test_a_model_is_itself_after_an_export():
    model, ids = build(pattern=["attention"]).eval(), tokens(2, 13) % 61
    expected = build(pattern=["attention"]).eval()(tokens(2, 11) % 61).logits
    torch.export.export(Logits(model), (ids,), strict=False)
    assert type(model(ids).logits) is torch.Tensor
    assert_close(model(tokens(2, 11) % 61).logits, expected, 1e-6)


def test_a_faked_forward_leaves_nothing_behind():
    with FakeTensorMode():
        build(pattern=["attention"])(torch.zeros(2, 9, dtype=torch.long))
    assert type(build(pattern=["attention"])(tokens(2, 9) % 61).logits) is torch.Tensor


@torch.no_grad()
def test_a_compiled_model_continues_a_cache():
    model, ids = build(pattern=["attention"]).eval(), tokens(3, 12) % 61
    expected = model(ids).logits
    compiled = torch.compile(model, backend="eager")
    cache = compiled(ids[:, :7], cache=True).cache
    parts = [compiled(ids[:, t : t + 1], cache=cache).logits for t in range(7, 12)]
    assert_close(torch.cat(parts, 1), expected[:, 7:], 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", MIXERS)
def test_calls_without_a_token_or_without_a_row_are_possible(name):
    model, ids = build(pattern=[name]).eval(), tokens(3, 8) % 61
    assert model(ids[:, :0]).logits.shape == (3, 0, 61)
    assert model(ids[:0]).logits.shape == (0, 8, 61)
    cache = model(ids[:, :5], cache=True).cache
    model(ids[:, :0], cache=cache)
    assert_close(model(ids[:, 5:], cache=cache).logits, model(ids).logits[:, 5:], 1e-5)
