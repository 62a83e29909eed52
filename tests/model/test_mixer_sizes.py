"""Sizes that follow from the width are the published ones; parameters and states are those of the study's tables."""

import pytest
import torch

from hybridlm.lm import HybridLM
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.tests.model.helpers import build, small

SIZES = ("n_heads", "head_dim", "v_head_dim")


@pytest.mark.parametrize(
    ("name", "d_model", "sizes"),
    [
        ("hgrn2", 1024, (8, 128, 128)),
        ("hgrn2", 2048, (16, 128, 128)),
        ("hgrn2", 64, (4, 16, 16)),
        ("retnet", 1024, (8, 128, 256)),
        ("retnet", 2048, (8, 256, 512)),
        ("retnet", 64, (4, 16, 32)),
        ("gla", 1024, (4, 128, 256)),
        ("gla", 2048, (4, 256, 512)),
        ("gla", 64, (2, 16, 32)),
        ("deltanet", 1024, (8, 128, 128)),
        ("deltanet", 2048, (16, 128, 128)),
        ("deltanet", 64, (4, 16, 16)),
    ],
)
def test_heads_follow_from_the_width(name, d_model, sizes):
    with torch.device("meta"):
        mixer = next(build(d_model=d_model, pattern=[name], vocab_size=2).mixers())
    H, K, V = sizes
    assert mixer.memory_shape == (H, K, V)


STUDY = {
    "attention": {"n_heads": 16},
    "hgrn": {},
    "hgrn2": {"n_heads": 8, "head_dim": 128},
    "retnet": {"n_heads": 8, "head_dim": 128, "v_head_dim": 256, "ffn_hidden": 1536},
    "gla": {"n_heads": 4, "head_dim": 128, "v_head_dim": 256},
    "deltanet": {"n_heads": 8, "head_dim": 128},
    "gated_deltanet": {"n_heads": 6, "head_dim": 256, "v_head_dim": 512},
}
LARGE = {
    **STUDY,
    "attention": {"n_heads": 32},
    "hgrn2": {"n_heads": 16, "head_dim": 128},
    "retnet": {"n_heads": 8, "head_dim": 256, "v_head_dim": 512, "ffn_hidden": 2816},
    "gla": {"n_heads": 4, "head_dim": 256, "v_head_dim": 512},
    "deltanet": {"n_heads": 16, "head_dim": 128},
}


def study(name: str, d_model: int) -> HybridLM:
    """A pure model of the hybrid study, arXiv 2507.06457, without memory for its weights."""
    options = (STUDY if d_model == 1024 else LARGE)[name]
    config = ModelConfig(
        vocab_size=2,
        d_model=d_model,
        n_layers=21 if name == "gated_deltanet" else 24,
        pattern=[name],
        ffn={"hidden": {1024: 2816, 2048: 5632}[d_model]},
        **{name: options},
    )
    with torch.device("meta"):
        return HybridLM(config)


@pytest.mark.parametrize(
    ("name", "millions", "state"),
    [
        ("attention", 308, None),
        ("hgrn", 308, 1_024),
        ("hgrn2", 308, 131_072),
        ("retnet", 315, 262_144),
        ("gla", 309, 131_072),
        ("deltanet", 309, 131_072),
        ("gated_deltanet", 447, 786_432),
    ],
)
def test_study_at_340m(name, millions, state):
    check(study(name, 1024), millions, state)


@pytest.mark.parametrize(
    ("name", "millions", "state"),
    [
        ("attention", 1233, None),
        ("hgrn", 1233, 2_048),
        ("hgrn2", 1233, 262_144),
        ("retnet", 1221, 1_048_576),
        ("gla", 1235, 524_288),
        ("deltanet", 1235, 262_144),
        ("gated_deltanet", 1256, 786_432),
    ],
)
def test_study_at_1300m(name, millions, state):
    check(study(name, 2048), millions, state)


def check(model: HybridLM, millions: int, state: int | None) -> None:
    """Parameters without the embedding; floats of one layer's memory."""
    found = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    assert found / 1e6 == pytest.approx(millions, abs=0.6)
    if state is not None:
        mixer = next(model.mixers())
        conv = 0 if mixer.conv is None else 3 * mixer.conv.shape[0]
        assert mixer.state_bytes(4096) == 4 * (state + conv)


@pytest.mark.parametrize("name", ["hgrn", "retnet", "attention"])
def test_a_layer_may_have_an_ffn_of_its_own(name):
    model = build(layers=[{name: {"ffn_hidden": 40}}, name])
    first, second = model.layers()
    assert first.ffn.down_proj.weight.shape == (32, 40)
    assert second.ffn.down_proj.weight.shape[1] != 40
    difference = first.flops_per_token(64) - second.flops_per_token(64)
    assert difference == 6 * 32 * (40 - second.ffn.down_proj.weight.shape[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retnet": {"head_dim": 7}}, "retnet.head_dim: 7 is odd, RoPE rotates pairs; use an even one"),
        ({"hgrn2": {"n_heads": 3}}, "hgrn2.n_heads: 3 does not divide d_model=32; use a divisor"),
        ({"gla": {"chunk_size": 48}}, "gla.chunk_size: Input should be 16, 32 or 64, got 48"),
    ],
)
def test_errors_say_the_fix(options, message):
    with pytest.raises(ConfigError) as error:
        ModelConfig.parse({"n_layers": 1, "d_model": 32, "pattern": list(options), **options})
    assert str(error.value) == message


def test_every_linear_mixer_s_state_is_constant():
    for name in STUDY:
        mixer = next(build(pattern=[name]).mixers())
        assert mixer.constant_state == (name != "attention") == (mixer.state_bytes(10) == mixer.state_bytes(1000))


def test_small_models_have_whole_heads():
    for name in ("hgrn2", "retnet", "gla", "deltanet"):
        for d_model in range(2, 80, 2):
            try:
                options = small(d_model=d_model, pattern=[name]).layer_specs()[0].options
            except ValueError as error:
                assert "use a divisor" in str(error)
                continue
            assert all(getattr(options, size) >= 1 for size in SIZES if hasattr(options, size))
