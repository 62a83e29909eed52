"""Contract 3: prefill, then one token or one piece at a time, equals the parallel form, logits and state."""

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridlm.lm import HybridLM
from hybridlm.lm.model import Cache
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import FORWARD, Build, assert_same_state, scores, tokens
from hybridlm.tests.oracles import assert_close

T = 71


@torch.no_grad()
def continued(model: HybridLM, ids: Tensor, cuts: list[int], cache: Cache) -> tuple[Tensor, Cache]:
    """Logits of ids from the cache's length on, computed in pieces that end at `cuts`, and the cache after them."""
    parts = [model(ids[:, a:b], cache=cache).logits for a, b in pairwise([cache.lengths[0], *cuts])]
    return torch.cat(parts, 1), cache


@torch.no_grad()
def parallel(model: HybridLM, ids: Tensor) -> tuple[Tensor, Cache]:
    output = model(ids, cache=True)
    assert_close(output.logits, scores(model, ids), FORWARD, "logits when a cache is kept")
    return output.logits, output.cache


def check_token_by_token(build: Build) -> None:
    model, ids = build(), tokens(2, T)
    expected, state = parallel(model, ids)
    for n in (0, 1, 2, 37, 63, 64, 65):
        start = parallel(model, ids[:, :n])[1] if n else model.new_cache(2)
        logits, cache = continued(model, ids, list(range(n + 1, T + 1)), start)
        assert_close(logits, expected[:, n:], FORWARD, f"logits after a prefill of {n}")
        assert_same_state(cache, state)


def check_piece_by_piece(build: Build) -> None:
    model, ids = build(), tokens(2, 200)
    expected, state = parallel(model, ids)
    for cuts in ([1, 31, 33, 97, 160, 161, 200], [64, 128, 192, 200], [63, 126, 200], [130, 131, 200]):
        logits, cache = continued(model, ids, cuts, model.new_cache(2))
        assert_close(logits, expected, FORWARD, f"logits of pieces that end at {cuts}")
        assert_same_state(cache, state)


def check_save_and_load(build: Build) -> None:
    model, ids = build(), tokens(2, T)
    expected, state = parallel(model, ids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.safetensors"
        before = parallel(model, ids[:, :37])[1]
        before.save(path)
        parallel(model, tokens(2, 5, seed=1))  # another user of the same model in between
        loaded = Cache.load(path, model)
    assert_same_state(loaded, before, bound=0)
    logits, cache = continued(model, ids, [38, 39, 50, T], loaded)
    assert_close(logits, expected[:, 37:], FORWARD, "logits after save and load")
    assert_same_state(cache, state)


def check_select(build: Build) -> None:
    model, ids, rows = build(), tokens(3, T), [2, 0, 0]
    expected, state = parallel(model, ids)
    start = parallel(model, ids[:, :40])[1]
    branch = start.select(rows)
    logits, _ = continued(model, ids[rows], [41, T], branch)
    assert_close(logits, expected[rows, 40:], FORWARD, "logits of the selected rows")
    logits, cache = continued(model, ids, [41, T], start)  # the original, untouched by its copy
    assert_close(logits, expected[:, 40:], FORWARD, "logits of the original rows")
    assert_same_state(cache, state)


CHECKS = [check_token_by_token, check_piece_by_piece, check_save_and_load, check_select]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check, build):
    check(build)


@pytest.mark.parametrize(
    ("check", "mixer"),
    [
        (check_token_by_token, broken.ForgetsSteps),
        (check_piece_by_piece, broken.ForgetsSteps),
        (check_piece_by_piece, broken.StartsAfresh),
        (check_save_and_load, broken.RemembersAside),
        (check_select, broken.RemembersAside),
    ],
)
def test_broken_mixer_fails(check, mixer, register):
    with pytest.raises(AssertionError):
        check(register(mixer))
