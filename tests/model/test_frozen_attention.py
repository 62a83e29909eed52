"""`freeze_qk`: what addresses is random and stays as it is, whatever trains the rest (arXiv 2307.11353)."""

import pytest
import torch

from hybridlm.lm.parts.context import Context
from hybridlm.lm.recipe.train import OptimConfig
from hybridlm.lm.train.optim import build_optimizer
from hybridlm.tests.model.helpers import build, small, tokens

FROZEN = {"freeze_qk": True, "rope": None, "n_heads": 4, "head_dim": 8}


def model(**options):
    return build(pattern=["attention"], n_layers=2, attention={**FROZEN, **options})


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_moves_values_and_leaves_queries_and_keys(tied):
    lm, ids = model(tie_qk=tied), tokens(2, 12)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    updates = build_optimizer(lm, OptimConfig(lr=0.1, weight_decay=0.5))
    lm(ids, labels=ids).loss.backward()
    updates.step()
    held = {id(p) for group in updates.param_groups for p in group["params"]}
    for i, mixer in enumerate(lm.mixers()):
        assert mixer.qk_weight.grad is None and not mixer.qk_weight.requires_grad and id(mixer.qk_weight) not in held
        assert torch.equal(mixer.qk_weight, before[f"blocks.{i}.mixer.qk_weight"])
        assert not torch.equal(mixer.v_proj.weight, before[f"blocks.{i}.mixer.v_proj.weight"])
        assert sum(p.numel() for p in mixer.parameters()) == 2 * 32 * lm.config.d_model


def test_frozen_projections_are_saved_and_drawn_anew_by_another_seed():
    lm = model()
    other = build(1, pattern=["attention"], n_layers=2, attention=FROZEN)
    ids = tokens(1, 9)
    other.load_state_dict({**other.state_dict(), **{k: v for k, v in lm.state_dict().items() if "qk_weight" not in k}})
    assert not torch.equal(lm(ids).logits, other(ids).logits)
    other.load_state_dict(lm.state_dict())
    assert torch.equal(lm(ids).logits, other(ids).logits)


def test_scores_vary_by_one_at_unit_inputs():
    """Of q and k from different projections and inputs of mean square 1; a small init would make all weights alike."""
    mixer = next(model().mixers())
    x = torch.randn(4, 50, mixer.qk_weight.shape[1])
    q, k, *_ = mixer.projection(mixer, x)
    scores = q.unflatten(-1, (4, 8)).transpose(1, 2) @ k.unflatten(-1, (4, 8)).permute(0, 2, 3, 1) / 8**0.5
    assert 0.7 < scores.std() < 1.4


def test_tied_projections_address_what_is_alike():
    x = torch.nn.functional.normalize(torch.randn(1, 400, 32), dim=-1) * 32**0.5
    mixer = next(build(pattern=["attention"], d_model=32, attention={**FROZEN, "tie_qk": True}).mixers())
    q, k, *_ = mixer.projection(mixer, x)
    assert torch.equal(q, k)
    product = mixer.qk_weight.T @ mixer.qk_weight / mixer.qk_weight.diagonal().numel() * 32
    assert product.diagonal().mean() > 5 * (product - product.diag().diag()).abs().mean()


def test_order_of_the_keys_does_not_matter_without_positions():
    lm = build(pattern=["attention"], n_layers=1, attention=FROZEN)
    ids = tokens(2, 10)
    shuffled = torch.cat((ids[:, torch.randperm(9)], ids[:, -1:]), 1)
    torch.testing.assert_close(lm(ids).logits[:, -1], lm(shuffled).logits[:, -1])


def test_without_values_nothing_comes_out():
    lm = model()
    for mixer in lm.mixers():
        torch.nn.init.zeros_(mixer.v_proj.weight)
        assert mixer(torch.randn(1, 5, lm.config.d_model), Context.dense(1, 5, None, lm.device)).y.abs().max() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"freeze_qk": True, "qk_norm": "head"}, "qk_norm: the gains of 'head' would train; use none with freeze_qk"),
        ({"freeze_qk": True, "bias": "qkv"}, "bias: 'qkv' would train biases of q and k"),
        ({"tie_qk": True}, "tie_qk: needs freeze_qk"),
        ({"freeze_qk": True, "tie_qk": True, "n_heads": 4, "n_kv_heads": 2}, "n_heads=4, n_kv_heads=2"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        small(pattern=["attention"], attention=options)
