"""Contract 9: declared FLOPs and state bytes are the counted ones."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import Build, Builder, matmul_backends, tokens

LENGTHS = (64, 128, 320)  # multiples of the chunk; elsewhere a chunked form works on padding, which nobody declares


@torch.no_grad()
def check_flops(build: Build) -> None:
    for d_model in (64, 48):
        model = build(d_model=d_model)
        for T in LENGTHS:
            # the counter does not know the CPU's fused attention; the plain one does the same products by matmul
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), matmul_backends():
                model(tokens(2, T))
            counted, declared = counter.get_total_flops() / (2 * T), model.flops_per_token(T)
            assert abs(declared - counted) <= 1e-9 * counted, f"{T=}: {declared} FLOPs per token, {counted} counted"


@torch.no_grad()
def check_state_bytes(build: Build) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = build().to(dtype)
        for T in (1, 2, 63, 64, 65, 200):
            cache = model(tokens(3, T), cache=True).cache
            assert cache.nbytes == 3 * model.state_bytes(T), f"{cache.nbytes} bytes held at {T=} in {dtype}"
            model(tokens(3, 1), cache=cache)
            assert cache.nbytes == 3 * model.state_bytes(T + 1), f"{cache.nbytes} bytes held after a step from {T=}"


def check_constant_state(build: Build) -> None:
    for mixer in build().mixers():
        grows = mixer.state_bytes(1 << 20) != mixer.state_bytes(1 << 19)
        assert mixer.constant_state != grows, f"{type(mixer).__name__}: constant_state={mixer.constant_state}, {grows=}"


CHECKS = [check_flops, check_state_bytes]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check, build):
    check(build)


@pytest.mark.parametrize("name", MIXERS)
def test_constant_state_contract(name):
    check_constant_state(Builder((name,)))  # declared by the class, so for its default options


@pytest.mark.parametrize(
    ("check", "mixer"),
    [
        (check_flops, broken.CountsHalf),
        (check_flops, broken.CountsOneLength),
        (check_state_bytes, broken.CountsOneDtype),
        (check_constant_state, broken.ClaimsConstant),
    ],
)
def test_broken_mixer_fails(check, mixer, register):
    with pytest.raises(AssertionError):
        check(register(mixer))
