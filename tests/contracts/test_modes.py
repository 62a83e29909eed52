"""Contract 13: what a model remembers of a call serves every later one, whatever mode the first was in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from hybridlm.kernels.shared import sequences
from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.lm.parts import context, rope
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import FORWARD, Build, assert_same_gradients, bounds, gradients, scores, tokens
from hybridlm.tests.oracles import assert_close

T, LENGTHS = 37, [1, 20, 0, 16]
MODES: dict[str, Callable[[], AbstractContextManager]] = {
    "inference": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def forget() -> None:
    """What processes remember of shapes, as if the test were the first to use them."""
    for remembered in (sequences._rows, context._fresh_rows, rope._frequencies):
        remembered.cache_clear()


def check_mode(build: Build, mode: str) -> None:
    """Rows, documents, padding and a cache, first seen in the mode, then trained on outside of it, then seen again."""
    model, other, rows, documents = build(), build(), tokens(2, T), tokens(1, sum(LENGTHS))
    packed = Sequences.documents(LENGTHS)
    mask = torch.ones_like(rows)
    mask[0, :5] = 0
    forget()
    expected = _trained(other, rows, documents, Sequences.documents(LENGTHS))
    with torch.no_grad(), MODES[mode]() if mode == "autocast" else nullcontext():  # which rounds, whoever was first
        filled = other(rows[:, 3:], cache=True).cache
    stepped = scores(other, rows[:, :3], cache=filled)
    forget()
    with torch.no_grad(), MODES[mode]():
        model(rows)
        model(documents, sequences=packed)
        model(documents, cu_seqlens=bounds(LENGTHS).cpu() if mode != "meta" else torch.tensor([0, 37], device="cpu"))
        model(rows, attention_mask=mask)
        cache = model(rows[:, 3:], cache=True).cache
    found = _trained(model, rows, documents, packed)
    assert_same_gradients(found, expected, FORWARD)
    after = scores(model, rows[:, :3], cache=cache)
    assert_close(after, stepped, FORWARD, f"a cache filled under {mode}")


def _trained(model, rows, documents, packed) -> dict[str, torch.Tensor]:
    model(rows, labels=rows).loss.backward()
    model(documents, labels=documents, sequences=packed, logits=False).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("mode", MODES)
def test_contract(mode, build):
    check_mode(build, mode)


def test_broken_mixer_fails(register):
    with pytest.raises((AssertionError, RuntimeError)):
        check_mode(register(broken.KeepsItsPositions), "inference")
