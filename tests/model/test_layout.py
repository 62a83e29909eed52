"""The three spellings of a layer list, per-layer options, and what wrong ones are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.layers import describe
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.tests.model.helpers import build, small, tokens

THREE_TO_ONE = ["gated_deltanet", "gated_deltanet", "gated_deltanet", "attention"]


def names(**layers) -> list[str]:
    return [spec.mixer for spec in small(**layers).layer_specs()]


def test_three_spellings_agree():
    assert names(n_layers=8, pattern=THREE_TO_ONE) == THREE_TO_ONE * 2
    assert names(n_layers=8, ratio={"gated_deltanet": 3, "attention": 1}) == THREE_TO_ONE * 2
    assert names(n_layers=8, layers=THREE_TO_ONE * 2) == THREE_TO_ONE * 2


def test_ratio_order_does_not_matter_unless_shares_are_equal():
    assert names(n_layers=4, ratio={"attention": 1, "gated_deltanet": 3}) == THREE_TO_ONE
    assert names(n_layers=4, ratio={"attention": 1, "gated_deltanet": 1}) == ["attention", "gated_deltanet"] * 2


@given(a=st.integers(1, 9), b=st.integers(1, 9), periods=st.integers(1, 3))
def test_ratio_is_exact_and_evenly_spread(a, b, periods):
    layers = names(n_layers=(a + b) * periods, ratio={"gated_deltanet": a, "attention": b})
    period = layers[: a + b]
    assert layers == period * periods
    assert period.count("gated_deltanet") == a
    # after any number of layers, each mixer is within one layer of its share
    for i in range(1, a + b + 1):
        assert abs(period[:i].count("attention") - i * b / (a + b)) < 1 + 1e-9


@pytest.mark.parametrize(
    ("n_layers", "share", "full"),
    [
        (24, 24, [23]),
        (24, 12, [12]),
        (24, 6, [6, 13, 20]),
        (24, 3, [3, 7, 11, 15, 19, 23]),
        (21, 24, [20]),
        (21, 12, [12]),
        (21, 6, [6, 13, 20]),
        (21, 3, [3, 7, 11, 15, 19]),
    ],
)
def test_where_full_attention_lies_in_the_hybrid_study(n_layers, share, full):
    """Layer l is full where (l + 1) mod (share + 1) = 0, and the last one where that gives none (arXiv 2507.06457)."""
    layers = names(n_layers=n_layers, ratio={"gated_deltanet": share, "attention": 1}, remainder="cut")
    assert [i for i, name in enumerate(layers) if name == "attention"] == full
    assert layers.count("gated_deltanet") == n_layers - len(full)


def test_a_cut_pattern_keeps_every_kind_of_layer():
    pattern = ["gated_deltanet", "gated_deltanet", "gated_deltanet", {"attention": {"window": 16}}]
    cut = small(n_layers=3, pattern=pattern, remainder="cut").layer_specs()
    assert [spec.mixer for spec in cut] == ["gated_deltanet", "gated_deltanet", "attention"]
    assert getattr(cut[-1].options, "window", None) == 16


@given(share=st.integers(1, 30), n_layers=st.integers(2, 40))
def test_a_cut_ratio_begins_like_the_whole_one(share, n_layers):
    ratio = {"gated_deltanet": share, "attention": 1}
    layers = names(n_layers=n_layers, ratio=ratio, remainder="cut")
    period = names(n_layers=share + 1, ratio=ratio)
    assert len(layers) == n_layers and set(layers) == set(ratio)
    assert layers[:-1] == (period * n_layers)[: n_layers - 1]


def test_options_per_layer():
    layers = ["attention", {"attention": {"window": 16, "rope": None}}]
    model = build(layers=layers, attention={"n_heads": 4, "head_dim": 8, "n_kv_heads": 2})
    first, second = (mixer.options for mixer in model.mixers())
    assert (first.window, second.window) == (None, 16)
    assert first.rope is not None and second.rope is None
    assert (first.n_kv_heads, second.n_kv_heads) == (2, 2)
    model(tokens(1, 40))


def test_description_folds_repeats():
    specs = small(n_layers=8, pattern=THREE_TO_ONE).layer_specs()
    assert describe(specs) == "3 x gated_deltanet, attention, 3 x gated_deltanet, attention"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_layers": 6, "pattern": THREE_TO_ONE},
            "pattern: a period of 4 layers does not divide n_layers=6; use n_layers=4 or 8, spell the layers out "
            "with layers:, or cut the last period with remainder: cut",
        ),
        (
            {"n_layers": 2, "ratio": {"gated_deltanet": 3, "attention": 1}},
            "ratio: a period of 4 layers does not divide n_layers=2; use n_layers=4 or 8, spell the layers out "
            "with layers:, or cut the last period with remainder: cut",
        ),
        (
            {"n_layers": 1, "remainder": "cut", "ratio": {"gated_deltanet": 2, "attention": 1}},
            "ratio: n_layers=1 has no place for each of the 2 kinds of layer, even with remainder: cut; use "
            "n_layers=3, or spell the layers out with layers:",
        ),
        (
            # plain attention would take the place of the only windowed one
            {"remainder": "cut", "pattern": ["gated_deltanet", {"attention": {"window": 16}}, "attention"]},
            "pattern: n_layers=2 has no place for each of the 3 kinds of layer, even with remainder: cut; use "
            "n_layers=3, or spell the layers out with layers:",
        ),
        (
            {"n_layers": 3, "layers": ["attention"] * 2},
            "layers: lists 2 layers but n_layers is 3; make them equal",
        ),
        (
            {"pattern": ["attention"], "ratio": {"attention": 1}},
            "layers: give exactly one of pattern, ratio and layers, got pattern and ratio",
        ),
        (
            {"pattern": None},
            "layers: give exactly one of pattern, ratio and layers, got none",
        ),
        ({"pattern": ["atention"]}, "layers: unknown mixer 'atention'; did you mean 'attention'?"),
        (
            {"ratio": {"attention": 0}},
            "ratio.attention: Input should be greater than or equal to 1, got 0",
        ),
        ({"ratio": {}}, "ratio: Dictionary should have at least 1 item after validation, not 0, got {}"),
        (
            {"pattern": [{"attention": {}, "gated_deltanet": {}}]},
            "layers: {'attention': {}, 'gated_deltanet': {}} is not one layer; write a name or {name: {option: value}}",
        ),
        (
            {"pattern": [{"attention": {"windw": 4}}]},
            "layer attention: windw: unknown key 'windw' in the recipe; did you mean 'window'?",
        ),
        (
            {"attention": {"n_heads": 4, "n_kv_heads": 3}},
            "attention.n_kv_heads: 3 does not divide n_heads=4; use a divisor",
        ),
        (
            {"attention": {"head_dim": 7}},
            "attention.head_dim: 7 is odd, RoPE rotates pairs; use an even one or rope: null",
        ),
        (
            {"gated_deltanet": {"n_heads": 2, "n_v_heads": 3}},
            "gated_deltanet.n_v_heads: 3 is no multiple of n_heads=2; use one",
        ),
    ],
)
def test_errors_say_the_fix(options, message):
    layers = {} if options.keys() & {"ratio", "layers", "pattern"} else {"pattern": ["attention", "gated_deltanet"]}
    with pytest.raises(ConfigError) as error:
        ModelConfig.parse({"n_layers": 2, **layers, **options})
    assert str(error.value) == message
