"""What transformers' models of GatedDeltaNet and full attention have in common: configuration and tensors, both ways.

A family gives the options that have one possible value (`Needed`, by section; "" is the model's own), and the names of
those that it is free in beyond what is here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...parts.errors import ConfigError

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig

Needed = Mapping[str, Mapping[str, Any]]

LAYERS = {"gated_deltanet": "linear_attention", "attention": "full_attention"}
# options that all layers of a kind must share, and the names of those in the configuration
SHARED: dict[str, dict[str, str]] = {
    "attention": {"n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"},
    "gated_deltanet": {
        "n_heads": "linear_num_key_heads",
        "n_v_heads": "linear_num_value_heads",
        "head_dim": "linear_key_head_dim",
        "v_head_dim": "linear_value_head_dim",
        "conv_size": "linear_conv_kernel_dim",
    },
}
# the model's own, by our name
SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
EVERYWHERE = {"positions": "none", "logit_softcap": None}


def differences(model: "BaseModelConfig", needed: Needed, free: Iterable[str]) -> Iterator[str]:
    """What of `model` no hybrid, or not this one, can have: option, value and what is needed.

    free: further options as `section.option` that may have any value, one for all layers.
    """
    specs = model.layer_specs()
    names = {spec.mixer for spec in specs}
    if names != LAYERS.keys():
        yield _differs("layers", sorted(names), "both attention and gated_deltanet, and no other")
    for option, value in (EVERYWHERE | dict(needed[""])).items():
        if getattr(model, option) != value:
            yield _differs(option, getattr(model, option), repr(value))
    if model.ffn is None:
        yield _differs("ffn", None, "a feed-forward")
    elif model.ffn.bias:
        yield _differs("ffn.bias", True, "False")
    if len(widths := distinct(spec.options.ffn_hidden for spec in specs)) > 1:
        yield _differs("ffn_hidden", widths, "one width for all layers")
    for name in sorted(names & LAYERS.keys()):
        layers: list[Any] = [spec.options for spec in specs if spec.mixer == name]
        for option, value in needed[name].items():
            for found in distinct(getattr(layer, option) for layer in layers):
                if found != value:
                    yield _differs(f"{name}.{option}", found, repr(value))
        own = (option.partition(".")[2] for option in free if option.startswith(f"{name}."))
        for option in (*SHARED[name], *own):
            if len(values := distinct(getattr(layer, option) for layer in layers)) > 1:
                yield _differs(f"{name}.{option}", values, "one value for all layers")
        for rope in distinct(layer.rope for layer in layers) if name == "attention" else ():
            if rope is not None and rope.scaling != "none":
                yield _differs("attention.rope.scaling", rope.scaling, "'none'")


def _differs(name: str, value: Any, needed: str) -> str:
    return f"{name} is {value!r}, needs {needed}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def options_of(model: "BaseModelConfig") -> dict[str, Any]:
    """The options of one layer of each kind."""
    return {spec.mixer: spec.options for spec in model.layer_specs()}


def common_config(model: "BaseModelConfig") -> dict[str, Any]:
    """The part of config.json that every hybrid has, apart from its type."""
    options = options_of(model)
    fields = {theirs: getattr(model, ours) for ours, theirs in SIZES.items()}
    for name, shared in SHARED.items():
        fields |= {theirs: getattr(options[name], ours) for ours, theirs in shared.items()}
    return fields | {
        "intermediate_size": options["attention"].ffn_hidden,
        "layer_types": [LAYERS[spec.mixer] for spec in model.layer_specs()],
        "hidden_act": "silu",
        "attention_bias": False,
        "pad_token_id": None,
    }


def common_section(config: dict[str, Any], needed: Needed, allowed: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe's model section that every config.json gives; `allowed` values, by key, are all we have.

    Raises ConfigError for others, for a layer type that is neither, and KeyError for a size that is missing.
    """
    sizes_of_layers = (theirs for shared in SHARED.values() for theirs in shared.values())
    for key in (*SIZES.values(), *sizes_of_layers, "intermediate_size", "layer_types"):
        if config.get(key) is None:
            raise KeyError(key)
    allowed = {"hidden_act": "silu", "attention_bias": False} | dict(allowed)
    problems = [
        f"{name} is {config[name]!r}, only {value!r} is supported"
        for name, value in allowed.items()
        if config.get(name, value) != value
    ]
    kind = (config.get("rope_parameters") or {}).get("rope_type", "default")
    if kind not in ("default", None):
        problems.append(f"rope_parameters.rope_type is {kind!r}, only 'default' is supported")
    kinds = {theirs: ours for ours, theirs in LAYERS.items()}
    if others := sorted(set(config["layer_types"]) - kinds.keys()):
        problems.append(f"layer_types has {', '.join(others)}, only {' and '.join(kinds)} are supported")
    if problems:
        raise ConfigError(f"{config['model_type']} config.json: {'; '.join(problems)}")
    sections = {
        name: dict(needed[name]) | {ours: config[theirs] for ours, theirs in SHARED[name].items()} for name in LAYERS
    }
    sizes = {ours: config[theirs] for ours, theirs in SIZES.items()}
    layers = [kinds[kind] for kind in config["layer_types"]]
    return sizes | dict(needed[""]) | sections | {"layers": layers, "ffn": {"hidden": config["intermediate_size"]}}
