"""Contract 8: short, odd, long and extreme inputs stay finite and right."""

import pytest
import torch

from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import FORWARD, Build, Builder, gradients, scores, tokens, weights_like
from hybridlm.tests.oracles import assert_close

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129)


def check_lengths(build: Build) -> None:
    """Forward and gradients are finite at every awkward length, and the logits a prefix of a longer run's."""
    model, ids = build(), tokens(2, 130)
    whole = scores(model, ids)
    for T in LENGTHS:
        logits = model(ids[:, :T]).logits
        assert_close(logits, whole[:, :T], FORWARD, f"logits at T={T}")
        (logits * weights_like(logits)).sum().backward()
        assert_finite(gradients(model), f"T={T}")


def check_widths(build: Build) -> None:
    """Widths that are no power of two, down to one head: finite, and decoding equals the parallel form."""
    for d_model in (24, 36, 72):
        model, ids = build(d_model=d_model), tokens(2, 70)
        whole = scores(model, ids)
        cache = model(ids[:, :65], cache=True).cache
        stepped = torch.cat([scores(model, ids[:, t : t + 1], cache=cache) for t in range(65, 70)], 1)
        assert_close(stepped, whole[:, 65:], FORWARD, f"decoding at d_model={d_model}")


def check_decays(build: Build) -> None:
    """Decay and gate parameters far out on both sides: finite, and decoding equals the parallel form."""
    for shift in (-8.0, 8.0):
        model, ids = build(), tokens(2, 140)
        with torch.no_grad():
            for mixer in model.mixers():
                for name in mixer.float32_parameters:
                    mixer.get_parameter(name).add_(shift)
        logits = model(ids).logits
        (logits * weights_like(logits)).sum().backward()
        assert_finite(gradients(model), f"decays shifted by {shift}")
        cache = model(ids[:, :129], cache=True).cache
        stepped = torch.cat([scores(model, ids[:, t : t + 1], cache=cache) for t in range(129, 140)], 1)
        assert_close(stepped, logits[:, 129:], FORWARD, f"decoding with decays shifted by {shift}")


@torch.no_grad()
def check_long_state(build: Build, n: int = 100_000, piece: int = 1024) -> None:
    """After 100k tokens, half of them the same one, the state and the logits are finite."""
    model = build(d_model=32, n_layers=1)
    cache, ids = model.new_cache(1), tokens(1, piece)
    ids[:, ::2] = 3
    for _ in range(-(-n // piece)):
        logits = scores(model, ids, cache=cache)
        assert_finite({"logits": logits, **cache.layers[0].tensors()}, f"{cache.lengths[0]} tokens")


def assert_finite(tensors: dict[str, torch.Tensor], when: str) -> None:
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    assert not bad, f"not finite with {when}: {bad}"


CHECKS = [check_lengths, check_widths, check_decays]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check, build):
    check(build)


@pytest.mark.parametrize("name", [name for name, mixer in MIXERS.items() if mixer.constant_state])
def test_long_state_contract(name):
    check_long_state(Builder((name,)))


@pytest.mark.parametrize(
    ("check", "mixer"),
    [
        (check_lengths, broken.DividesByDeviation),
        (check_lengths, broken.DividesByLength),
        (check_widths, broken.NeedsPowersOfTwo),
        (check_decays, broken.Overflows),
        (check_long_state, broken.Explodes),
    ],
)
def test_broken_mixer_fails(check, mixer, register):
    with pytest.raises(AssertionError):
        check(register(mixer))
