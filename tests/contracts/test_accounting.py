"""Contract 9: declared FLOPs and state bytes are the counted ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels import (
    banded_attention,
    banded_attention_flops,
    head_routed_attention,
    head_routed_attention_flops,
)
from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import Build, Builder, matmul_backends, tokens

LENGTHS = (64, 128, 320)  # multiples of the chunk; elsewhere a chunked form works on padding, which nobody declares


def active_pairs(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, sink: Any, window: Any, *_: Any, out_val: Any) -> float:
    """FLOPs of the tokens and heads that a gate leaves, each with the keys that attention counts for a query: all of
    its sequence, or the sink and the window."""
    T, D = q.shape[1], q.shape[3]
    return int((gate != 0).sum()) * head_routed_attention_flops(D, min([T, *map(sum, zip(sink, window, strict=True))]))


def banded_pairs(q: Tensor, k: Tensor, v: Tensor, sink: Any, window: Any, *_: Any, out_val: Any) -> float:
    """The same of all tokens and heads."""
    keys = min([q.shape[1], *map(sum, zip(sink, window, strict=True))])
    return q.shape[:3].numel() * banded_attention_flops(q.shape[3], keys)


for formula in (active_pairs, banded_pairs):
    formula._get_raw = True  # type: ignore[attr-defined]  # values and not shapes are given


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Matrix products as PyTorch counts them. Routed attention and windows are counted by the pairs they are given, not
    by the blocks of PyTorch's backends, which are as wide as the busiest head and have edges."""
    ops = torch.ops.hybridlm
    formulas = {ops.head_routed_attention: active_pairs, ops.banded_attention: banded_pairs}
    run = banded_attention.run
    routed = patch.object(head_routed_attention, "run", head_routed_attention._traced)  # one node, as the counter sees
    banded = patch.object(
        banded_attention, "run", lambda x, backend: (banded_attention._traced if x.window else run)(x, backend)
    )
    # the counter does not know the CPU's fused attention; the plain one does the same products by matmul
    with (
        FlopCounterMode(display=False, custom_mapping=formulas) as counter,
        sdpa_kernel(SDPBackend.MATH),
        matmul_backends(),
        routed,
        banded,
    ):
        yield counter


@torch.no_grad()
def check_flops(build: Build) -> None:
    for d_model in (64, 48):
        model = build(d_model=d_model)
        for T in LENGTHS:
            with counting() as counter:
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
        (check_flops, broken.CountsAllHeads),
        (check_state_bytes, broken.CountsOneDtype),
        (check_constant_state, broken.ClaimsConstant),
    ],
)
def test_broken_mixer_fails(check, mixer, register):
    with pytest.raises(AssertionError):
        check(register(mixer))
