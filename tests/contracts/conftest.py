"""Every contract runs on each registered mixer, a hybrid of all of them, random mixes, and a correct stand-in."""

import random
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
    "biased": "{attention: {bias: all, n_kv_heads: 1, rope: {scaling: yarn, factor: 4, original_context: 16}}}",
    "frozen": "{attention: {freeze_qk: true, n_kv_heads: 1, window: 32}}",
    "frozen-tied": "{attention: {freeze_qk: true, tie_qk: true, rope: null}}",
    "routed-groups": "{moh: {n_heads: 4, n_kv_heads: 2, heads: {route: groups, shared: 0, active: 2}}}",
    "routed-in-a-window": "{moh: {n_heads: 4, n_kv_heads: 2, window: 32, qk_norm: head, heads: {active: 2}}}",
    "routed-and-gated": "{moh: {n_heads: 4, n_kv_heads: 1, gate: true, bias: all, heads: {shared_heads: [3, 1]}}}",
    "all-routed": "{moh: {n_heads: 4, heads: {shared: 0, active: 4, balance: {over: micro_batch}}}}",
    "all-shared": "{moh: {n_heads: 4, rope: null, norm: post, heads: {shared: 4, active: 4}}}",
    "query-norm": "{attention: {n_heads: 4, gate: true, qk_norm: head, heads: {router: query_norm, active: 2}}}",
    "query-norm-groups": "{attention: {n_heads: 8, n_kv_heads: 4, window: 32, heads: {router: query_norm, "
    "route: groups, shared_heads: [2, 3], active: 4, normalise: none}}}",
    "wide-conv": "{gated_conv: {conv_size: 5}}",
    "signed": "{gated_deltanet: {n_heads: 2, n_v_heads: 4, allow_negative_eigenvalues: true, conv_size: 2}}",
    "gated": "{deltanet: {n_heads: 3, head_dim: 10, output_gate: true, allow_negative_eigenvalues: true}}",
    "expanded": "{hgrn: {expand_ratio: 2, ffn_hidden: 40}}",
    "many-keys": "{hgrn2: {n_heads: 2, head_dim: 40, chunk_size: 32, recompute: true}}",
    "odd-heads": "{retnet: {n_heads: 3, head_dim: 6, v_head_dim: 10, chunk_size: 16}}",
    "fast-gate": "{gla: {n_heads: 3, head_dim: 7, v_head_dim: 10, gate_rank: 3, gate_normalizer: 1, recompute: true}}",
}
"""Options that change how a mixer computes or what it remembers."""
MIXES = ("mix 1", "mix 2", "mix 3")  # other layers for every contract


def sampled_layers(seed: str) -> tuple[str, ...]:
    """Four layers of any mixers; a mixer comes in one form, as layers that share a table need equal sizes."""
    rng = random.Random(seed)
    forms = {name: [name, *(v for v in VARIANTS.values() if v.startswith(f"{{{name}:"))] for name in MIXERS}
    return tuple(rng.choices([rng.choice(form) for form in forms.values()], k=4))


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


@pytest.fixture(params=[*MIXERS, "hybrid", *MIXES, *VARIANTS, STAND_IN])
def build(request, register) -> Builder:
    """The models under contract. A mixer registered tomorrow is one more parameter."""
    if request.param == STAND_IN:
        return register(LeakyMemory)
    if request.param == "hybrid":
        return Builder(tuple(MIXERS))
    if request.param in MIXES:
        return Builder(sampled_layers(request.node.name))
    return Builder((VARIANTS.get(request.param, request.param),))
