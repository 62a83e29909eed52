"""H1 to H6: padding, packing and positions, for every mixer and a hybrid. T stays within two chunks of 64."""

import pytest
import torch

from hybridlm.lm import HybridLM, Recipe
from hybridlm.tests.contracts.harness import FORWARD, bounds, scores, tokens
from hybridlm.tests.oracles import assert_close

CONV, CHUNK = 4, 64
PADS = (1, CONV - 1, CONV, CHUNK - 1, CHUNK, CHUNK + 1)


def left_padded(ids: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [B, T] behind k random tokens, and the mask that hides these."""
    rows = torch.cat((tokens(len(ids), k, seed=9), ids), 1)
    return rows, torch.arange(rows.shape[1]).expand_as(rows) >= k


@pytest.mark.parametrize("B", [1, 3])
def test_h01_left_padding_changes_no_logits(any_model, B):
    """Pads in front of convolutions and states: mamba issue 66, transformers issue 31540, and 46773 for B = 1."""
    ids = tokens(B, 20)
    expected = scores(any_model, ids)
    for k in PADS:
        rows, mask = left_padded(ids, k)
        assert_close(scores(any_model, rows, attention_mask=mask)[:, k:], expected, FORWARD, f"{k} pads")


def test_h01_rows_with_unequal_padding(any_model):
    ids = tokens(1, CHUNK + 3)
    lengths = (CHUNK + 3, 1, CONV)
    mask = torch.stack([torch.arange(CHUNK + 3) >= CHUNK + 3 - n for n in lengths])
    found = scores(any_model, ids.expand(3, -1), attention_mask=mask)
    for row, n in enumerate(lengths):
        assert_close(found[row, -n:], scores(any_model, ids[:, -n:])[0], FORWARD, f"{n} real tokens")


@torch.no_grad()
def test_h02_masked_tokens_inside_a_row_are_never_seen(any_model):
    """A mask on the values alone leaves the decay and the convolution: flash-linear-attention issue 1272."""
    ids = tokens(2, 30)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[0, [0, 7, 8, 9, 20]] = mask[1, 13:] = False
    other = torch.where(mask, ids, tokens(2, 30, seed=5))
    runs = [any_model(rows, attention_mask=mask, cache=True) for rows in (ids, other)]
    assert torch.equal(runs[0].logits[mask], runs[1].logits[mask])
    step = tokens(2, 1, seed=6)
    expected = any_model(step, cache=runs[0].cache).logits
    assert torch.equal(any_model(step, cache=runs[1].cache).logits, expected)
    assert_close(scores(any_model, ids[:1, mask[0]])[0], runs[0].logits[0, mask[0]], FORWARD, "without the pads")


@torch.no_grad()
def test_h02_a_padded_step_leaves_the_state(any_model):
    cache = any_model(tokens(2, 9), cache=True).cache
    before = [{name: t[0].clone() for name, t in layer.tensors().items()} for layer in cache.layers]
    any_model(tokens(2, 1, seed=3), cache=cache, attention_mask=torch.tensor([[0], [1]]))
    assert cache.lengths == [9, 10]
    for layer, old in zip(cache.layers, before, strict=True):
        for name, tensor in old.items():
            now = layer.tensors()[name][0]
            assert torch.equal(now[: len(tensor)], tensor), name  # keys and values of the longer row take more slots


@torch.no_grad()
def test_h03_right_padding_does_not_enter_the_state(any_model):
    """Earlier logits are right whatever follows; what is decoded next is not."""
    ids, more = tokens(2, 24), tokens(2, 3, seed=4)
    mask = torch.arange(24) < torch.tensor([[24], [5]])
    cache = any_model(ids, attention_mask=mask, cache=True).cache
    found = torch.cat([any_model(more[:, i : i + 1], cache=cache).logits for i in range(3)], 1)
    for row, n in enumerate((24, 5)):
        whole = torch.cat((ids[row : row + 1, :n], more[row : row + 1]), 1)
        assert_close(found[row], scores(any_model, whole)[0, -3:], FORWARD, f"row of {n} tokens")


def test_h04_packed_documents_do_not_leak(any_model):
    """States and convolutions start anew at each bound; a mask on top is refused: flash-linear-attention issue 838."""
    lengths = [1, CHUNK + 1, 3, 17]
    ids = tokens(1, sum(lengths))
    packed = scores(any_model, ids, cu_seqlens=bounds(lengths))
    alone = torch.cat([scores(any_model, part) for part in ids.split(lengths, 1)], 1)
    assert_close(packed, alone, FORWARD, "packed documents")
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="attention_mask: cannot be combined with cu_seqlens"):
        any_model(ids, cu_seqlens=bounds(lengths), attention_mask=mask)


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_h05_positions_count_real_tokens(positions):
    """Rotary and learned positions follow from the mask; there are no position ids that could contradict it."""
    sizes = ["model.n_layers=2", "model.d_model=32", "model.vocab_size=97", "model.pattern=[attention]"]
    torch.manual_seed(0)
    overrides = [*sizes, "model.init_std=0.2", f"model.positions={positions}"]
    model = HybridLM(Recipe.load("demo", overrides=overrides).model).eval()
    ids = tokens(2, 20)
    expected = scores(model, ids)
    for k in PADS:
        rows, mask = left_padded(ids, k)
        assert_close(scores(model, rows, attention_mask=mask)[:, k:], expected, FORWARD, f"{k} pads")
        wrong = (scores(model, rows)[:, k:] - expected).abs().max()
        assert wrong > 0.01  # the test sees pads that are not masked
    with pytest.raises(TypeError, match="position_ids"):
        model(ids, position_ids=torch.arange(20))


def test_h06_pads_and_neighbours_compete_with_nobody(any_model):
    """Experts and routers with a capacity would serve real tokens differently: outputs depend on the row alone."""
    ids = tokens(1, 20)
    expected = scores(any_model, ids)
    for n_pads in (1, CHUNK):
        rows, mask = left_padded(torch.cat((ids, tokens(3, 20, seed=8))), n_pads)
        mask = mask.clone()
        mask[2] = False  # a row of nothing but pads
        found = scores(any_model, rows, attention_mask=mask)
        assert_close(found[:1, n_pads:], expected, FORWARD, f"{n_pads} pads, 3 neighbours")
