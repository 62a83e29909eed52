"""What training does to a model is done in one order, whatever of it is asked for."""

import functools

import pytest
from torch import nn

from hybridlm.lm.mixers import Mixer
from hybridlm.lm.train.parallel import apply
from hybridlm.tests.train.worker import build_model, train_config


def recomputed(model) -> bool:
    return all(isinstance(block.forward, functools.partial) for block in model.layers())


def test_blocks_are_recomputed_then_compiled_then_marked(monkeypatch):
    model = build_model()
    steps = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: steps.append(("compile", recomputed(model))))
    asked = train_config(zero_stage=3, activation_checkpointing=True, compile=True)
    apply(model, asked, lambda marked, kinds: steps.append((marked is model, kinds, recomputed(model))))
    assert steps == [("compile", True)] * 2 + [(True, [Mixer], True)]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_nothing_is_done_that_is_not_asked_for(monkeypatch, stage):
    model = build_model()
    monkeypatch.setattr(nn.Module, "compile", lambda self: pytest.fail("compiled"))
    apply(model, train_config(zero_stage=stage), lambda *_: pytest.fail("marked"))
    assert not any("forward" in vars(module) for module in model.modules())
