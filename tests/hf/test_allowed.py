"""An export writes from an allow-list: an option that a format's list does not name is refused by name."""

import typing
from typing import Any, Literal

import pytest
from pydantic import create_model

from hybridlm.lm.hf.families.allowed import EVERYWHERE, KnownOptions, joined
from hybridlm.lm.hf.formats import FAMILIES, choose_format
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.parts.rope_config import RopeConfig
from hybridlm.lm.parts.strict import Strict
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.tests.hf.helpers import section
from hybridlm.tests.hf.hybrids import OLMO, QWEN

HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"pattern": ["attention"], "attention": HEADS},
    "olmo_hybrid": OLMO,
    "qwen3_5": QWEN,
}
SECTIONS = [(format, path) for format in MODELS for path in FAMILIES[format].KNOWN]


def members(options: type[Strict]) -> list[tuple[str, Any]]:
    """Each option with its type, or with each type of a union."""
    fields = options.model_fields.items()
    return [(name, kind) for name, field in fields for kind in (field.annotation, *typing.get_args(field.annotation))]


def nested(options: type[Strict]) -> dict[str, type[Strict]]:
    """The options that are sections themselves."""
    return {name: kind for name, kind in members(options) if isinstance(kind, type) and issubclass(kind, Strict)}


def at(path: str) -> type[Strict]:
    """The class of the section `path` of a model."""
    found: type[Strict] = ModelConfig
    for name in path.split(".") if path else ():
        found = nested(found)[name]
    return found


def extended(options: type[Strict], path: str) -> type[Strict]:
    """These options, with a new one called `sink` in their section `path`."""
    name, _, rest = path.partition(".")
    if not name:
        return create_model(options.__name__, __base__=options, sink=(int, 0))
    inner = extended(nested(options)[name], rest)
    field: Any = {name: (inner | None, inner())}
    return create_model(options.__name__, __base__=options, **field)


def with_new_option(path: str, model: dict[str, Any]) -> ModelConfig:
    given = section(**model).model_dump(exclude_unset=True)
    return typing.cast(ModelConfig, extended(ModelConfig, path).model_validate(given))


def test_every_format_but_our_own_has_a_list():
    assert {*MODELS, "hybridlm"} == FAMILIES.keys()
    for format, model in MODELS.items():
        assert choose_format(section(**model)) == format


@pytest.mark.parametrize(("format", "path"), SECTIONS)
def test_a_list_names_every_option_once(format, path):
    """Who adds an option decides in families/, in FORMAT.py, hybrids.py or allowed.py, what an export does with it."""
    options = at(path).model_fields.keys() - (set() if path else set(MIXERS))
    assert sorted(FAMILIES[format].KNOWN[path].names) == sorted(options)


@pytest.mark.parametrize("format", MODELS)
def test_a_list_has_every_section_below_what_it_translates(format):
    known = FAMILIES[format].KNOWN
    mixers = set(MIXERS) & known.keys()
    below = {
        f"{path}.{name}".removeprefix(".")
        for path, own in known.items()
        for name in nested(at(path)).keys() & {*own.translated, *own.by_layer, *own.given}
    }
    assert known.keys() == {"", *mixers, *below}


@pytest.mark.parametrize(("format", "path"), SECTIONS)
def test_a_list_names_the_values_of_every_choice(format, path):
    """A value added tomorrow is refused until a list names it."""
    own = FAMILIES[format].KNOWN[path]
    choices = {name: typing.get_args(kind) for name, kind in members(at(path)) if typing.get_origin(kind) is Literal}
    assert choices.keys().isdisjoint({*own.translated, *own.by_layer, *own.given})
    for name, values in own.among.items():
        assert set(values) <= set(choices[name])


@pytest.mark.parametrize(("format", "path"), SECTIONS)
def test_an_unknown_option_is_refused_by_name_at_its_default(format, path):
    model = with_new_option(path, MODELS[format])
    with pytest.raises(ConfigError) as error:
        choose_format(model, format)
    name = f"{path}.sink".removeprefix(".")
    assert f"format {format}: {name} is 0, an option that this format does not know; " in str(error.value)
    assert choose_format(model) == "hybridlm"


def test_an_unknown_option_of_a_mixer_that_no_layer_has_is_none_of_a_format_s_business():
    assert choose_format(with_new_option("gla", MODELS["llama"])) == "llama"
    assert choose_format(with_new_option("gated_deltanet", MODELS["llama"])) == "llama"


def test_an_unknown_option_shows_the_value_of_every_layer():
    layers = ["attention", {"attention": {"sink": 4}}, "attention"]
    given = section(pattern=["attention"] * 3, attention=HEADS).model_dump(exclude_unset=True)
    model = extended(ModelConfig, "attention").model_validate(given | {"pattern": layers})
    with pytest.raises(ConfigError, match=r"attention.sink is \[0, 4\], an option that this format does not know"):
        choose_format(typing.cast(ModelConfig, model), "llama")


def test_what_belongs_to_training_or_speed_is_no_obstacle():
    training = {"dropout": 0.1, "z_loss": 1e-4, "init_std": 0.01}
    quick = {"chunk_size": 16, "recompute": True}
    for format, model in MODELS.items():
        dropped = model | training | {"attention": model["attention"] | {"dropout": 0.1}}
        linear = {"gated_deltanet": model["gated_deltanet"] | quick} if "gated_deltanet" in model else {}
        assert choose_format(section(**dropped | linear), format) == format
    layers = ["gated_deltanet", {"gated_deltanet": {"chunk_size": 16}}, "attention"]
    assert choose_format(section(**QWEN | {"pattern": layers})) == "qwen3_5"


def test_joined_lists_know_what_either_knows():
    one = joined(EVERYWHERE, {"ffn": KnownOptions(unused=("bias",)), "gla": KnownOptions(fixed={"norm": "pre"})})
    assert one == {
        "": EVERYWHERE[""],
        "ffn": KnownOptions(translated=("hidden", "multiple_of"), unused=("bias",)),
        "gla": KnownOptions(fixed={"norm": "pre"}),
    }


def test_every_option_that_is_no_llama_is_named():
    attention = HEADS | {"freeze_qk": True, "tie_qk": True, "n_kv_heads": 4, "norm": "post", "rope": {"fraction": 0.5}}
    layers = [{"attention": {"window": w}} for w in (5, 7)] + ["gla", {"attention": {"head_dim": 4}}]
    model = section(
        layers=layers, attention=attention, positions="learned", logit_softcap=3.0, zero_centered_norms=True
    )
    with pytest.raises(ConfigError) as error:
        choose_format(model, "llama")
    assert str(error.value).removeprefix("format llama: ").removesuffix("; use hybridlm").split("; ") == [
        "layers is ['attention', 'gla'], needs attention, and no other",
        "positions is 'learned', needs 'none'",
        "zero_centered_norms is True, needs False",
        "logit_softcap is 3.0, needs None",
        "attention.norm is 'post', needs 'pre'",
        "attention.head_dim is [8, 4], needs one value for all layers",
        "attention.freeze_qk is True, needs False",
        "attention.tie_qk is True, needs False",
        "attention.rope.fraction is 0.5, needs 1.0",
        "attention.window is [5, 7], needs one size, in the layers that have a window",
    ]
    model = section(pattern=["attention"], attention=HEADS | {"rope": None}, ffn=None)
    with pytest.raises(ConfigError, match=r"ffn is None, needs a feed-forward; attention.rope is None, needs RoPE"):
        choose_format(model, "llama")


def test_what_no_member_of_the_llama_family_has_is_said_of_each():
    attention = {"n_heads": 3, "n_kv_heads": 1, "head_dim": 14, "bias": "all", "window": 5}
    model = section(pattern=["attention"], attention=attention, ffn={"bias": True})
    with pytest.raises(ConfigError) as error:
        choose_format(model, "llama")
    biases = "attention.bias is 'all', needs"
    assert str(error.value) == (
        "format llama: no member of the family can be this model ("
        "llama: attention.window is [5], needs None in all layers, "
        "attention.n_heads is 3, needs a divisor of d_model, which is 32; "
        f"mistral: {biases} 'none', ffn.bias is True, needs False; "
        f"qwen2: {biases} 'qkv', ffn.bias is True, needs False; "
        "qwen3: attention.qk_norm is 'none', needs 'head', ffn.bias is True, needs False"
        "); use hybridlm"
    )
    model = section(pattern=[{"attention": {"window": 6}}, "attention"], attention=HEADS)
    with pytest.raises(
        ConfigError, match=r"mistral: attention.window is \[6, None\], needs one value for all layers; "
    ):
        choose_format(model, "llama")


def test_an_unknown_value_of_a_choice_is_refused():
    scalings = Literal["none", "linear", "llama3", "yarn", "spiral"]
    rope = create_model("RopeConfig", __base__=RopeConfig, scaling=(scalings, "spiral"))
    model = section(pattern=["attention"], attention=HEADS | {"rope": rope()})
    needed = r"needs 'none' or 'linear' or 'llama3' or 'yarn'"
    with pytest.raises(ConfigError, match=rf"attention.rope.scaling is 'spiral', {needed}; use hybridlm"):
        choose_format(model, "llama")
    with pytest.raises(ConfigError, match=r"attention.rope.scaling is 'spiral', needs 'none'"):
        choose_format(section(**OLMO | {"attention": OLMO["attention"] | {"rope": rope()}}), "olmo_hybrid")
