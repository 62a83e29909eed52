"""Every contract runs on each registered mixer, a hybrid of all of them, and a correct stand-in of the tests' own."""

from collections.abc import Callable

import pytest
import torch

from hybridlm.lm import HybridLM
from hybridlm.lm.mixers import MIXERS, Mixer
from hybridlm.tests.contracts.broken import LeakyMemory
from hybridlm.tests.contracts.harness import Builder

STAND_IN = "stand_in"
VARIANTS = {
    "windowed": "{attention: {window: 32, n_kv_heads: 1, qk_norm: head}}",
    "post-norm": "{attention: {norm: post, qk_norm: full, rope: null}}",
    "signed": "{gated_deltanet: {n_heads: 2, n_v_heads: 4, allow_negative_eigenvalues: true, conv_size: 2}}",
}
"""Options that change how a mixer computes or what it remembers."""


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


@pytest.fixture(params=[*MIXERS, "hybrid", *VARIANTS, STAND_IN])
def build(request, register) -> Builder:
    """The models under contract. A mixer registered tomorrow is one more parameter."""
    if request.param == STAND_IN:
        return register(LeakyMemory)
    if request.param == "hybrid":
        return Builder(tuple(MIXERS))
    return Builder((VARIANTS.get(request.param, request.param),))
