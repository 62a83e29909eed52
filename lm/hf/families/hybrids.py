"""What transformers' models of GatedDeltaNet and full attention have in common: configuration and tensors, both ways.

A family adds to the options that are known here: those that have one possible value, and those that it is free in.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...parts.errors import ConfigError
from .allowed import EVERYWHERE, Known, KnownOptions, differs, joined, refusals

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig

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
NO_SCALING = (  # of RoPE, so that what shapes one is not read
    *("factor", "original_context", "low_freq_factor", "high_freq_factor"),
    *("beta_slow", "beta_fast", "attention_factor", "truncate"),
)
HYBRIDS = joined(
    EVERYWHERE,
    {
        "ffn": KnownOptions(fixed={"bias": False}),
        "attention": KnownOptions(
            translated=(*SHARED["attention"], "head_dim", "ffn_hidden"),
            fixed={"bias": "none", "window": None, "freeze_qk": False, "tie_qk": False, "heads": None, "mask": None},
            unused=("dropout",),
        ),
        "attention.rope": KnownOptions(translated=("theta",), fixed={"scaling": "none"}, unused=NO_SCALING),
        "gated_deltanet": KnownOptions(
            translated=(*SHARED["gated_deltanet"], "ffn_hidden"),
            fixed={"norm": "pre"},
            unused=("chunk_size", "recompute"),
        ),
    },
)


def differences(model: "BaseModelConfig", known: Known) -> Iterator[str]:
    """What of `model` the hybrid with these lists cannot have, or does not know."""
    yield from refusals(model, known)
    widths = {name: options.ffn_hidden for name, options in options_of(model).items()}
    if len(set(widths.values())) > 1:
        yield differs("ffn_hidden", widths, "one width for all layers")


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


def common_section(config: dict[str, Any], known: Known, allowed: Mapping[str, Any]) -> dict[str, Any]:
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
        name: dict(known[name].fixed) | {ours: config[theirs] for ours, theirs in SHARED[name].items()}
        for name in LAYERS
    }
    return {
        **{ours: config[theirs] for ours, theirs in SIZES.items()},
        **known[""].fixed,
        **sections,
        "layers": [kinds[kind] for kind in config["layer_types"]],
        "ffn": {"hidden": config["intermediate_size"], **known["ffn"].fixed},
    }
