"""The decoding state: sizes, growth, rings, copies, files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlm.lm.mixers.attention.state import KVState
from hybridlm.lm.model import Cache
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close


def kv_state(n: int, window: int | None = None) -> KVState:
    return KVState(torch.empty(n, 0, 1, 1), torch.empty(n, 0, 1, 1), window)


def write(state: KVState, rows: Tensor, positions: Tensor) -> None:
    """Stores each token's own position as its key and minus that as its value."""
    k = positions[:, None, None].float()
    state.write(rows, positions, k, -k)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=8),
    window=st.sampled_from([None, 1, 4, 5]),
)
def test_every_live_token_lies_where_its_position_says(pieces, window):
    state, seen = kv_state(3, window), torch.zeros(3, dtype=torch.long)
    for lengths in pieces:
        for row, n in enumerate(lengths):
            positions = torch.arange(int(seen[row]), int(seen[row]) + n)[-(window or n or 1) :]
            write(state, torch.full_like(positions, row), positions)
        seen += torch.tensor(lengths)
    slots = state.slot_positions(seen)  # [3, S]
    for row in range(3):
        n = int(seen[row])
        live = range(max(0, n - window) if window else 0, n)
        assert sorted(p for p in slots[row].tolist() if p >= 0) == list(live)
        for slot, position in enumerate(slots[row].tolist()):
            if position >= 0:
                assert state.tensors()["k"][row, slot, 0, 0] == position
                assert state.tensors()["v"][row, slot, 0, 0] == -position


def test_appending_reallocates_a_logarithmic_number_of_times():
    state, buffers = kv_state(1), set()
    for t in range(1000):
        write(state, torch.tensor([0]), torch.tensor([t]))
        buffers.add(state._tensors["k"].data_ptr())
        assert state.tensors()["k"].shape[1] == t + 1
    assert state._tensors["k"].shape[1] == 1024
    assert len(buffers) <= 11


def test_a_window_bounds_the_state():
    model = build(pattern=["attention"], attention={"window": 8})
    cache = model(tokens(2, 100), cache=True).cache
    assert cache.nbytes == 2 * model.state_bytes(100) == 2 * model.state_bytes(8)
    assert model.state_bytes(5) < model.state_bytes(8)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 8])
def test_files_keep_lengths_dtype_and_content(tmp_path, window):
    model = build(attention={"window": window})
    mask = torch.tensor([[1] * 20, [1] * 3 + [0] * 17])
    cache = model(tokens(2, 20), attention_mask=mask, cache=True).cache
    cache.save(tmp_path / "state.safetensors")
    loaded = Cache.load(tmp_path / "state.safetensors", model)
    assert loaded.lengths == [20, 3]
    assert loaded.nbytes == cache.nbytes
    for mine, theirs in zip(loaded.layers, cache.layers, strict=True):
        for name, tensor in theirs.tensors().items():
            assert torch.equal(mine.tensors()[name], tensor) and mine.tensors()[name].dtype == tensor.dtype
    following = tokens(2, 1, seed=5)
    assert torch.equal(model(following, cache=loaded).logits, model(following, cache=cache).logits)


@torch.no_grad()
def test_a_copy_shares_nothing():
    model = build()
    cache = model(tokens(2, 9), cache=True).cache
    before = [{name: t.clone() for name, t in layer.tensors().items()} for layer in cache.layers]
    copy = cache.select([0, 1])
    model(tokens(2, 30, seed=3), cache=copy)
    assert cache.lengths == [9, 9] and copy.lengths == [39, 39]
    for layer, old in zip(cache.layers, before, strict=True):
        assert layer.tensors().keys() == old.keys()
        assert all(torch.equal(layer.tensors()[name], tensor) for name, tensor in old.items())


@torch.no_grad()
def test_many_continuations_of_one_prefix():
    model, prefix, endings = build(), tokens(1, 40), tokens(4, 6, seed=1)
    shared = model(prefix, cache=True).cache.select([0] * 4)
    whole = model(torch.cat((prefix.expand(4, -1), endings), 1)).logits[:, 40:]
    assert_close(model(endings, cache=shared).logits, whole, 1e-5)


def test_a_cache_carries_no_graph():
    cache = build()(tokens(1, 9), cache=True).cache
    assert not any(t.requires_grad for layer in cache.layers for t in layer.tensors().values())


def test_wrong_number_of_rows():
    model = build()
    cache = model(tokens(2, 9), cache=True).cache
    with pytest.raises(ValueError) as error:
        model(tokens(3, 1), cache=cache)
    assert str(error.value) == "cache: holds 2 sequences but the batch has 3; use cache.select(rows)"
