"""Contracts 1 and 2: no look-ahead, and a prefix of the input gives a prefix of the output."""

import pytest
import torch
from torch import Tensor

from hybridlm.lm import HybridLM
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import FORWARD, VOCAB, Build, scores, tokens, weights_like
from hybridlm.tests.oracles import assert_close, relative_rms

T = 150
STARTS = (1, 2, 37, 63, 64, 65, 100, 128, 149)  # on and off the boundaries of blocks and chunks
LENGTHS = (*range(1, 20), 23, 31, 32, 33, 47, 61, 63, 64, 65, 67, 79, 96, 97, 113, 127, 128, 129, 131, 149)


def check_noise_does_not_reach_back(build: Build) -> None:
    model, ids = build(), tokens(2, T)
    noise = (ids + 1 + tokens(2, T, seed=1) % (VOCAB - 1)) % VOCAB  # never the token it replaces
    clean = scores(model, ids)
    for start in STARTS:
        noisy = scores(model, torch.cat((ids[:, :start], noise[:, start:]), 1))
        assert_close(noisy[:, :start], clean[:, :start], FORWARD, f"logits before noise from {start} on")
        assert relative_rms(noisy[:, start:], clean[:, start:]) > 1e-2, "the noise has no effect, so this tests nothing"


def check_gradient_does_not_reach_forward(build: Build) -> None:
    model, ids = build(), tokens(1, T)
    for t in (0, 36, 62, 63, 64, 65, 127, 148):
        reach = _input_gradient(model, ids, t).norm(dim=-1)  # [T]
        assert reach[t + 1 :].amax() <= 1e-6 * reach.amax(), f"d output[{t}] / d input reaches past {t}"


def check_the_past_matters(build: Build) -> None:
    reach = _input_gradient(build(), tokens(1, T), T - 1).norm(dim=-1)
    assert reach[-2] > 1e-3 * reach.amax(), "no output depends on the token before it"


def _input_gradient(model: HybridLM, ids: Tensor, t: int) -> Tensor:
    """Gradient [T, D] of the logits at t by every embedded token."""
    embedded: list[Tensor] = []
    hook = model.embed.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits = model(ids).logits[0, t]
    hook.remove()
    return torch.autograd.grad((logits * weights_like(logits)).sum(), embedded)[0][0]


def check_prefixes_agree(build: Build) -> None:
    model, ids = build(), tokens(2, T)
    whole = scores(model, ids)
    for n in LENGTHS:
        assert_close(scores(model, ids[:, :n]), whole[:, :n], FORWARD, f"logits of the first {n} tokens")


CHECKS = [
    check_noise_does_not_reach_back,
    check_gradient_does_not_reach_forward,
    check_the_past_matters,
    check_prefixes_agree,
]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check, build):
    check(build)


@pytest.mark.parametrize(
    ("check", "mixer"),
    [
        (check_noise_does_not_reach_back, broken.SeesTheMean),
        (check_noise_does_not_reach_back, broken.PeeksInsideBlocks),
        (check_noise_does_not_reach_back, broken.PeeksAcrossBlocks),
        (check_gradient_does_not_reach_forward, broken.PeeksAcrossBlocks),
        (check_gradient_does_not_reach_forward, broken.LeaksGradients),
        (check_the_past_matters, broken.MixesNothing),
        (check_prefixes_agree, broken.SeesTheMean),
        (check_prefixes_agree, broken.DividesByLength),
    ],
)
def test_broken_mixer_fails(check, mixer, register):
    with pytest.raises(AssertionError):
        check(register(mixer))
