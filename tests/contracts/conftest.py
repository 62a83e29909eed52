"""Every contract runs on each registered mixer, a hybrid of all of them, and a correct stand-in of the tests' own."""

from collections.abc import Callable

import pytest
import torch
from hybridlm.lm import HybridLM
from hybridlm.lm.mixers import MIXERS, Mixer
from hybridlm.tests.contracts.broken import LeakyMemory
from hybridlm.tests.contracts.harness import Builder

STAND_IN = "stand_in"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def register(monkeypatch) -> Callable[[type[Mixer]], Builder]:
    """Registers a mixer class for one test and returns a builder of models made of it."""

    def add(mixer: type[Mixer], kind: type[HybridLM] = HybridLM) -> Builder:
        monkeypatch.setitem(MIXERS, STAND_IN, mixer)
        return Builder((STAND_IN,), kind)

    return add


@pytest.fixture(params=[*MIXERS, "hybrid", STAND_IN])
def build(request, register) -> Builder:
    """The models under contract. A mixer registered tomorrow is one more parameter."""
    if request.param == STAND_IN:
        return register(LeakyMemory)
    return Builder(tuple(MIXERS) if request.param == "hybrid" else (request.param,))
