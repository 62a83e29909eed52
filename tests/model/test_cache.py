"""The decoding state: sizes, growth, rings, copies, files."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.lm.mixers.attention.state import KVState
from hybridlm.lm.mixers.attention.visible import Banded, Causal
from hybridlm.lm.model import Cache
from hybridlm.lm.parts.context import Context
from hybridlm.lm.parts.state import LayerState
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close

CPU = torch.device("cpu")


def kv_state(n: int, most: int | None = None) -> KVState:
    return KVState.empty(n, 1, 1, most, torch.float32, CPU)


def see(state: KVState, visible: Causal, sequences: Context) -> None:
    """Stores each token's own position as its key and minus that as its value."""
    k = sequences.positions.expand(sequences.batch, -1)[..., None, None].float()
    visible.remember(state, k, -k, sequences)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=8),
    sink=st.sampled_from([0, 1, 7]),
    window=st.sampled_from([None, 1, 4, 5]),
    packed=st.booleans(),
)
def test_every_live_token_lies_where_its_position_says(pieces, sink, window, packed):
    visible = Banded(sink, window) if window else Causal()
    state, seen = kv_state(3, visible.most_slots), [0, 0, 0]
    for lengths in pieces:
        lengths = lengths if packed else lengths[:1] * 3
        documents = Context.documents_after(lengths, seen, CPU)
        see(state, visible, documents if packed else Context.dense(3, lengths[0], seen, CPU))
        seen = [past + new for past, new in zip(seen, lengths, strict=True)]
    for row, n in enumerate(seen):
        for position in range(n):
            slot = position
            if window and position >= sink:
                if position < n - window:
                    continue
                slot = sink + (position - sink) % window
            assert state.tensors()["k"][row, slot, 0, 0] == position
            assert state.tensors()["v"][row, slot, 0, 0] == -position


def test_a_step_copies_what_it_adds_and_no_more():
    state, buffers = kv_state(1), set()
    for t in range(1000):
        see(state, Causal(), Context.dense(1, 1, [t], CPU))
        buffers.add(state["k"].data_ptr())
        assert state.tensors()["k"].shape[1] == t + 1
    assert state["k"].shape[2] == 1024
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


def nested() -> LayerState:
    fast = LayerState(w1=torch.arange(6.0).view(3, 2), w2=torch.ones(3, 4))
    return LayerState(conv=torch.zeros(3, 5), fast=fast, start=fast.clone())


def test_states_nest_by_dotted_names():
    state = nested()
    assert list(state.tensors()) == ["conv", "fast.w1", "fast.w2", "start.w1", "start.w2"]
    assert state.nbytes == sum(t.nbytes for t in state.tensors().values())
    other = nested()
    other.load({name: tensor + 1 for name, tensor in state.tensors().items()})
    assert torch.equal(other.part("fast")["w1"], state.part("fast")["w1"] + 1)
    with pytest.raises(TypeError, match="state 'fast' is a state of its own"):
        state["fast"]


def test_what_leaves_a_state_stays_what_it_was():
    state = nested()
    kept, chosen, twin = state.tensors(), state.rows([2, 0, 2]), state.clone()
    state["conv"].add_(7)
    state.part("fast")["w1"].zero_()
    assert kept["conv"].sum() == twin["conv"].sum() == 0
    assert torch.equal(twin.part("fast")["w1"], kept["fast.w1"])
    assert torch.equal(chosen.part("fast")["w1"], kept["fast.w1"][[2, 0, 2]])


MIXED = ["gated_deltanet", "attention", {"attention": {"window": 4}}, "gla"]


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
def test_a_snapshot_taken_before_a_step_stays_what_it_was(steps):
    model = build(pattern=MIXED, n_layers=4)
    cache = model(tokens(2, 9), cache=True).cache
    snapshot, content = cache.clone(), [layer.tensors() for layer in cache.layers]
    following = tokens(2, 3, seed=1)
    expected = model(following, cache=snapshot.clone()).logits
    for t in range(steps):
        model(tokens(2, 1, seed=t), cache=cache)
    for layer, before in zip(snapshot.layers, content, strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.tensors().items())
    assert torch.equal(model(following, cache=snapshot).logits, expected)


@torch.no_grad()
def test_a_stale_or_shared_cache_is_refused(tmp_path):
    model = build(pattern=MIXED, n_layers=4)
    cache = model(tokens(1, 5), cache=True).cache
    alias, shared = copy.copy(cache), Cache(list(cache.layers), 1)
    model(tokens(1, 1), cache=cache)
    for stale in (alias, shared):
        with pytest.raises(ValueError, match="cache: is stale"):
            model(tokens(1, 1), cache=stale)
        for copied, what in ((stale.clone, ()), (stale.select, ([0],)), (stale.save, (tmp_path / "stale",))):
            with pytest.raises(ValueError, match="cache: is stale"):
                copied(*what)
    assert not list(tmp_path.iterdir())
    model(tokens(1, 1), cache=cache)  # the one that made the last call goes on


@torch.no_grad()
def test_a_call_that_failed_half_way_leaves_no_state_to_continue(monkeypatch):
    model = build(pattern=MIXED, n_layers=4)
    cache = model(tokens(1, 5), cache=True).cache
    before = cache.clone()
    monkeypatch.setattr(model.blocks[2], "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens(1, 1), cache=cache)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="by a call that failed"):
        model(tokens(1, 1), cache=cache)
    model(tokens(1, 1), cache=before)


@pytest.mark.parametrize("grad", [False, True])
def test_a_cache_filled_in_inference_mode_is_continued_outside_it(grad):
    model = build(pattern=MIXED, n_layers=4)
    ids = tokens(2, 9)
    with torch.inference_mode():
        cache = model(ids[:, :6], cache=True).cache
        model(ids[:, 6:7], cache=cache)
    with torch.set_grad_enabled(grad):
        parts = [model(ids[:, t : t + 1], cache=cache).logits for t in (7, 8)]
        assert_close(torch.cat(parts, 1), model(ids).logits[:, 7:], 1e-5)
    if grad:
        torch.cat(parts, 1).sum().backward()


def test_gradients_flow_through_the_new_keys_of_a_continued_call():
    model = build(pattern=["attention", {"attention": {"window": 4}}])
    ids = tokens(1, 9)
    with torch.no_grad():
        cache = model(ids[:, :4], cache=True).cache
    model(ids[:, 4:], cache=cache).logits.square().mean().backward()
    for block in model.layers():
        q, k, v = block.mixer.qkv_proj.weight.grad.chunk(3)
        assert min(part.abs().sum() for part in (q, k, v)) > 0
    assert not any(tensor.requires_grad for layer in cache.layers for tensor in layer.tensors().values())
