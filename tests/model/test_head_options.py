"""Options of routed heads: defaults that follow from the sizes, values by layer, and errors that say the fix."""

from typing import Any

import pytest

from hybridlm.lm import Recipe
from hybridlm.lm.hf.formats import choose_format
from hybridlm.lm.mixers.attention.options import AttentionConfig, HeadsConfig
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.model import ModelConfig


def routed(heads: dict[str, Any] | None = None, n_layers: int = 2, **attention: Any) -> ModelConfig:
    own = {"n_heads": 8, "n_kv_heads": 4, "head_dim": 8, "heads": heads or {}, **attention}
    return ModelConfig.parse({"d_model": 32, "n_layers": n_layers, "pattern": ["attention"], "attention": own})


def heads_of(model: ModelConfig) -> list[HeadsConfig]:
    found = [spec.options for spec in model.layer_specs()]
    return [own.heads for own in found if isinstance(own, AttentionConfig) and own.heads is not None]


@pytest.mark.parametrize(
    ("n_heads", "heads", "shared", "active"),
    [
        (1, {}, 0, 1),
        (2, {}, 1, 2),
        (3, {}, 1, 3),
        (4, {}, 1, 3),
        (8, {}, 2, 6),
        (12, {}, 3, 9),
        (32, {}, 8, 24),
        (32, {"shared": 16}, 16, 24),
        (32, {"shared": 30}, 30, 31),
        (32, {"shared": 32}, 32, 32),
        (32, {"active": 16}, 8, 16),
        (32, {"active": 4}, 3, 4),
        (32, {"active": 1}, 0, 1),
        (8, {"shared_heads": [7, 3]}, 2, 6),
    ],
)
def test_a_quarter_is_shared_and_three_quarters_are_active(n_heads, heads, shared, active):
    model = routed(heads, n_heads=n_heads, n_kv_heads=n_heads)
    assert [(own.shared, own.active) for own in heads_of(model)] == [(shared, active)] * 2


@pytest.mark.parametrize(
    ("n_kv_heads", "heads", "shared", "active"),
    [
        (8, {}, 8, 24),
        (4, {}, 8, 24),
        (2, {}, 16, 32),
        (1, {}, 0, 32),
        (8, {"active": 12}, 8, 12),
    ],
)
def test_groups_are_counted_whole(n_kv_heads, heads, shared, active):
    model = routed({"route": "groups", **heads}, n_heads=32, n_kv_heads=n_kv_heads)
    assert [(own.shared, own.active) for own in heads_of(model)] == [(shared, active)] * 2


def test_the_first_heads_are_shared_unless_others_are_named():
    assert [own.shared_heads for own in heads_of(routed({"shared": 3}))] == [[0, 1, 2]] * 2
    assert [own.shared_heads for own in heads_of(routed({"shared_heads": [6, 1]}))] == [[1, 6]] * 2
    assert [own.shared_heads for own in heads_of(routed({"shared_heads": []}))] == [[]] * 2
    by_layer = heads_of(routed({"shared_heads": [[6, 1], [2, 3, 4]]}))
    assert [(own.shared, own.shared_heads) for own in by_layer] == [(2, [1, 6]), (3, [2, 3, 4])]


def test_a_list_gives_each_layer_its_own():
    found = heads_of(routed({"shared": [1, 2, 3], "active": [4, 5, 8]}, n_layers=3))
    assert [(own.shared, own.active) for own in found] == [(1, 4), (2, 5), (3, 8)]


def test_a_list_counts_the_layers_that_have_these_options():
    layers = ["gla", "attention", {"attention": {"window": 8}}, {"attention": {"heads": {"active": [6, 7]}}}, "gla"]
    model = ModelConfig.parse(
        {
            "d_model": 64,
            "n_layers": 10,
            "pattern": layers,
            "attention": {"n_heads": 8, "head_dim": 8, "heads": {"active": [2, 3, 4, 5], "shared": 1}},
        }
    )
    assert [own.active for own in heads_of(model)] == [2, 3, 6, 4, 5, 7]


def test_the_mean_over_layers_is_of_all_that_have_routed_heads():
    layers = ["gla", "attention", {"attention": {"heads": {"active": 3}}}, {"attention": {"heads": None}}]
    model = ModelConfig.parse(
        {"d_model": 64, "n_layers": 4, "layers": layers, "attention": {"heads": {"balance": {"coef": 0.04}}}}
    )
    assert [(own.balance.coef, own.balance.reduce) for own in heads_of(model)] == [(0.02, "sum"), (0.005, "sum")]
    summed = heads_of(routed({"balance": {"coef": 0.04, "reduce": "sum"}}))
    assert [(own.balance.coef, own.balance.reduce) for own in summed] == [(0.04, "sum")] * 2


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"active": 9}, "attention.heads.active: 9 is more than n_heads=8; use at most 8"),
        ({"shared": 9}, "attention.heads.shared: 9 is more than n_heads=8; use at most 8"),
        ({"shared": 3, "active": 2}, "attention.heads.active: 2 is below shared=3, which it counts; use more"),
        (
            {"shared": 3, "active": 3},
            "attention.heads.active: 3 counts the shared=3 and leaves no head to route, the other 5 would never be "
            "used; use 4 to 8",
        ),
        (
            {"active": 0},
            "attention.heads.active: 0 counts the shared=0 and leaves no head to route, the other 8 would never be "
            "used; use 1 to 8",
        ),
        (
            {"active": [3, 4, 5]},
            "attention.heads.active: lists 3 layers, but 2 have these options; give 2, or one for all",
        ),
        (
            {"shared_heads": [[1]]},
            "attention.heads.shared_heads: lists 1 layers, but 2 have these options; give 2, or one for all",
        ),
        (
            {"shared_heads": [1, 2], "shared": 3},
            "attention.heads.shared_heads: names 2 heads, but shared=3; leave shared out or name as many",
        ),
        (
            {"shared_heads": [1, 1]},
            "attention.heads.shared_heads: [1, 1]; allowed: heads from 0 to 7, each once",
        ),
        ({"shared_heads": [8]}, "attention.heads.shared_heads: [8]; allowed: heads from 0 to 7, each once"),
        (
            {"route": "groups", "shared": 1},
            "attention.heads.shared: 1 is no multiple of 2, the query heads of a key head, which route: groups uses "
            "together; use a multiple or route: heads",
        ),
        (
            {"route": "groups", "shared_heads": [1, 2]},
            "attention.heads.shared_heads: [1, 2] splits a group of 2 heads, which route: groups uses together; name "
            "whole groups",
        ),
        (
            {"straight_through": "dense"},
            "attention.heads.straight_through: 'dense' is an option of router: query_norm; leave it out or use that "
            "router",
        ),
        (
            {"normalise": "none"},
            "attention.heads.normalise: 'none' is an option of router: query_norm; leave it out or use that router",
        ),
        ({"shared": True}, "attention.heads.shared: a number of heads is wanted, or a list of one per layer, got True"),
        ({"shared": -1}, "attention.heads.shared: a number of heads is wanted, or a list of one per layer, got -1"),
        ({"active": []}, "attention.heads.active: a number of heads is wanted, or a list of one per layer, got []"),
        (
            {"shared_heads": 3},
            "attention.heads.shared_heads: heads are wanted, [0, 1] for every layer or [[0, 1], [2, 3]] by layer, got "
            "3",
        ),
        ({"sharde": 3}, "attention.heads.sharde: unknown key 'sharde' in attention.heads; did you mean 'shared'?"),
    ],
)
def test_errors_say_the_fix(heads, message):
    with pytest.raises(ConfigError) as error:
        routed(heads)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_heads": 1, "n_kv_heads": 1, "heads": {"shared": 1}},
            "attention.heads.shared: 1 is all of n_heads=1, nothing is left to weigh; use 0 or heads: null",
        ),
        (
            {"dropout": 0.1},
            "attention.dropout: 0.1 of the attention weights, which routed heads do not form; use 0 or heads: null",
        ),
        (
            {"freeze_qk": True, "heads": {"router": "query_norm"}},
            "attention.heads.router: 'query_norm' routes by queries that freeze_qk never trains; use moh, or "
            "freeze_qk: false",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(options, message):
    with pytest.raises(ConfigError) as error:
        routed(**options)
    assert str(error.value) == message


def test_a_recipe_with_routed_heads_reads_back_unchanged(tmp_path):
    recipe = Recipe.load(
        "demo",
        [
            "model.n_layers=2",
            "model.pattern=[attention]",
            "model.attention={n_heads: 4, heads: {router: query_norm, active: [3, 4], shared_heads: [[2], [0, 1]]}}",
        ],
    )
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_no_foreign_format_takes_routed_heads():
    model = routed({"active": [4, 5]})
    assert choose_format(model) == "hybridlm"
    with pytest.raises(ConfigError, match=r"^format llama: attention.heads is set, needs None; [^;]*$"):
        choose_format(model, "llama")
