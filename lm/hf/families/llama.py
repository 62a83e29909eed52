"""Our decoder and the Llama family of transformers, said once: configurations and tensor names, both ways.

The family is what a decoder of attention layers alone can be: llama, mistral (a sliding window), qwen2 (biases on q, k
and v, windows in some layers) and qwen3 (an RMSNorm on each head of q and k). The arithmetic is the same; q, k and v
are one projection here, and so are gate and up.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...mixers.attention.options import AttentionConfig
from ...parts.errors import ConfigError
from ...parts.rope_config import RopeConfig
from ...parts.strict import nearest
from .stacked import Stacked, ffn, linear, vector, whole

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig


class Architecture(NamedTuple):
    """What one model type of transformers can express, and what it takes for granted."""

    name: str
    biases: tuple[str, ...] = ("none", "all")
    """Values of attention.bias."""
    qk_norm: str = "none"
    windows: str = "none"
    """Layers with a sliding window: `none` of them, `same` in all, or `any`."""
    ffn_bias: bool = False
    heads_divide_width: bool = False
    """Whether transformers insists on d_model being a multiple of n_heads, even where head_dim is given."""
    defaults: dict[str, Any] = {}  # noqa: RUF012  of keys that config.json may leave out


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", ffn_bias=True, heads_divide_width=True),
    "mistral": Architecture(
        "MistralForCausalLM",
        biases=("none",),
        windows="same",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", biases=("qkv",), windows="any", defaults={"num_key_value_heads": 32}),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        qk_norm="head",
        windows="any",
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
}

# sizes without which there is no model: theirs, ours
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "context",
}
NEEDED = (*SIZES, "num_attention_heads", "intermediate_size")

# scaling parameters of RoPE that mean the same on both sides: ours, theirs
ROPE_KEYS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "beta_slow": "beta_slow",
        "beta_fast": "beta_fast",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}


def recipe_section(config: dict[str, Any]) -> dict[str, Any]:
    """The model section of a recipe that computes what a Llama-family config.json describes.

    Raises ConfigError for what the family or this package does not have: model type, activation, quantised weights,
    RoPE type.
    """
    architecture = _architecture(config)
    config = {**architecture.defaults, **config}
    if missing := [key for key in NEEDED if config.get(key) is None]:
        raise ConfigError(f"config.json: {', '.join(missing)} missing; the sizes of a model have no default")
    heads = config["num_attention_heads"]
    attention = {
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "qk_norm": architecture.qk_norm,
        "bias": _bias(config, architecture),
        "dropout": config.get("attention_dropout") or 0.0,
        "rope": _rope_section(config),
    }
    windows = _windows(config, architecture)
    if len(set(windows)) == 1:
        layers: dict[str, Any] = {"pattern": ["attention"]}
        attention["window"] = windows[0]
    else:
        layers = {"layers": [{"attention": {"window": w}} if w else "attention" for w in windows]}
    return {
        **{mine: config[theirs] for theirs, mine in SIZES.items()},
        **layers,
        "attention": attention,
        "ffn": {"hidden": config["intermediate_size"], "bias": bool(config.get("mlp_bias"))},
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _architecture(config: dict[str, Any]) -> Architecture:
    """The family's member, after a look at everything about it that this package does not have."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"config.json: model_type {kind!r} is not of the Llama family; {nearest(kind, ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[kind]
    classes = config.get("architectures") or [architecture.name]
    if architecture.name not in classes:
        raise ConfigError(
            f"config.json: architectures {classes} is no language model with a head; allowed: {architecture.name}"
        )
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ConfigError(f"config.json: hidden_act {activation!r}; allowed: silu, as a SwiGLU has it")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "of some kind")
        raise ConfigError(
            f"config.json: quantised weights ({method}); dequantise the checkpoint first, or convert the unquantised "
            "original or a .gguf file"
        )
    if kind == "mistral" and (config.get("attention_bias") or config.get("mlp_bias")):
        raise ConfigError("config.json: a mistral model has no biases; remove attention_bias and mlp_bias")
    return architecture


def _bias(config: dict[str, Any], architecture: Architecture) -> str:
    if len(architecture.biases) == 1:
        return architecture.biases[0]
    return "all" if config.get("attention_bias") else "none"


def _windows(config: dict[str, Any], architecture: Architecture) -> list[int | None]:
    """Each layer's sliding window, itself included; None sees everything before it."""
    n_layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if architecture.windows == "none":
        return [None] * n_layers
    if architecture.windows == "same":
        return [window] * n_layers
    if not config.get("use_sliding_window"):
        return [None] * n_layers
    window = config.get("sliding_window", 4096)
    full = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "full_attention" if i < full else "sliding_attention" for i in range(n_layers)
    ]
    if len(kinds) != n_layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"config.json: layer_types {kinds}; allowed: full_attention or sliding_attention for each of the "
            f"{n_layers} layers"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _rope_section(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE from `rope_parameters` (transformers 5) or from `rope_scaling` and `rope_theta` (before it)."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if any(isinstance(value, dict) for value in given.values()):
        raise ConfigError("config.json: rope_parameters differ by layer type; allowed: one set for all layers")
    if kind != "default" and kind not in ROPE_KEYS:
        field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        raise ConfigError(
            f"config.json: {field}.rope_type {kind!r} is not supported; allowed: default, {', '.join(ROPE_KEYS)}; "
            "convert a checkpoint with one of these"
        )
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ConfigError(f"config.json: partial_rotary_factor {partial}; allowed: 1, all channels of a head rotate")
    section: dict[str, Any] = {"theta": given.get("rope_theta") or config.get("rope_theta") or 10000.0}
    if kind == "default":
        return section
    context = config.get("original_max_position_embeddings")
    defaults = {"original_max_position_embeddings": config["max_position_embeddings"]}
    found = defaults | given | ({"original_max_position_embeddings": context} if context else {})
    needed = ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3" else ("factor",)
    for key in needed:
        if found.get(key) is None:
            raise ConfigError(f"config.json: RoPE type {kind!r} without {key}; restore the whole config.json")
    if kind == "yarn" and found.get("attention_factor") is None:
        found["attention_factor"] = _mscale(found)
    section["scaling"] = kind
    return section | {mine: found[theirs] for mine, theirs in ROPE_KEYS[kind].items() if found.get(theirs) is not None}


def _mscale(found: dict[str, Any]) -> float | None:
    """yarn's attention factor where a checkpoint gives it as the quotient of two scales; None if it does not."""
    scales = [float(found.get(key) or 0) for key in ("mscale", "mscale_all_dim")]
    if not all(scales):
        return None
    top, bottom = (0.1 * scale * math.log(found["factor"]) + 1 for scale in scales)
    return top / bottom


def hf_config(model: "BaseModelConfig") -> dict[str, Any]:
    """The config.json of the first member of the family that computes what `model` does, apart from dtype and tokens.

    Dropout on the embedding and the z-loss belong to training and are left out. Raises ConfigError that names what
    every member lacks.
    """
    specs = model.layer_specs()
    if others := sorted({spec.mixer for spec in specs} - {"attention"}):
        raise ConfigError(f"model: {', '.join(others)} layers have no place in a Llama-family checkpoint; {_INSTEAD}")
    layers: list[Any] = [spec.options for spec in specs]
    first: AttentionConfig = layers[0]
    windows = [layer.window for layer in layers]
    kind = _choose(model, layers, windows)
    config = {
        "architectures": [ARCHITECTURES[kind].name],
        "model_type": kind,
        **{theirs: getattr(model, mine) for theirs, mine in SIZES.items()},
        "num_attention_heads": first.n_heads,
        "num_key_value_heads": first.n_kv_heads,
        "head_dim": first.head_dim,
        "intermediate_size": first.ffn_hidden,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": first.dropout,
        "rope_parameters": _rope_parameters(first),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if "all" in ARCHITECTURES[kind].biases:
        config["attention_bias"] = first.bias == "all"
    if ARCHITECTURES[kind].ffn_bias:
        config["mlp_bias"] = bool(model.ffn and model.ffn.bias)
    if ARCHITECTURES[kind].windows == "same":
        config["sliding_window"] = windows[0]
    if ARCHITECTURES[kind].windows == "any":
        config |= _layer_types(windows)
    return config


_INSTEAD = "export it as a hybridlm folder"


def _choose(model: "BaseModelConfig", layers: Sequence[AttentionConfig], windows: list[int | None]) -> str:
    """The model type. Every condition that none of them meets becomes part of the error."""
    first = layers[0]
    same = {"window": None}
    general = {
        "one kind of attention layer": all(x.model_copy(update=same) == first.model_copy(update=same) for x in layers),
        "a feed-forward": model.ffn is not None,
        "RoPE": first.rope is not None,
        "positions: none": model.positions == "none",
        "norm: pre": first.norm == "pre",
        "freeze_qk: false": not first.freeze_qk,
        "gate: false": not first.gate,
        "rope.fraction: 1": first.rope is None or first.rope.fraction == 1,
        "zero_centered_norms: false": not model.zero_centered_norms,
        "no logit_softcap": model.logit_softcap is None,
        "one window size": len(set(windows) - {None}) <= 1,
    }
    if lacking := [name for name, holds in general.items() if not holds]:
        raise ConfigError(f"model: a Llama-family checkpoint has {', '.join(lacking)}; {_INSTEAD}")
    spread = "none" if not any(windows) else "same" if all(windows) else "any"
    for kind, architecture in ARCHITECTURES.items():
        allowed = {"none": ("none",), "same": ("none", "same"), "any": ("none", "same", "any")}[architecture.windows]
        if (
            first.bias in architecture.biases
            and first.qk_norm == architecture.qk_norm
            and spread in allowed
            and (architecture.ffn_bias or not (model.ffn and model.ffn.bias))
            and (not architecture.heads_divide_width or model.d_model % (first.n_heads or 1) == 0)
        ):
            return kind
    raise ConfigError(
        f"model: no member of the Llama family has attention.bias={first.bias}, qk_norm={first.qk_norm}, windows in "
        f"{spread} layers, ffn.bias={bool(model.ffn and model.ffn.bias)}, n_heads={first.n_heads} and "
        f"d_model={model.d_model} together; {_INSTEAD}"
    )


def _layer_types(windows: list[int | None]) -> dict[str, Any]:
    full = next((i for i, window in enumerate(windows) if window), len(windows))
    return {
        "use_sliding_window": any(windows),
        "sliding_window": max((w for w in windows if w), default=None),
        "max_window_layers": full,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def _rope_parameters(options: AttentionConfig) -> dict[str, Any]:
    rope = options.rope or RopeConfig()
    kind = "default" if rope.scaling == "none" else rope.scaling
    given = {theirs: getattr(rope, mine) for mine, theirs in ROPE_KEYS.get(kind, {}).items()}
    return {"rope_type": kind, "rope_theta": rope.theta} | {k: v for k, v in given.items() if v is not None}


def tensors(model: "BaseModelConfig") -> Iterator[Stacked]:
    """Every tensor of an attention-only model in the order of the layers; a tied head is the embedding, unnamed."""
    return whole(model, (_layer(spec.options, model) for spec in model.layer_specs()))


def _layer(options: Any, model: "BaseModelConfig") -> Iterator[Stacked]:
    d, dim = model.d_model, options.head_dim
    q, kv = options.n_heads * dim, options.n_kv_heads * dim
    yield vector("mixer_norm.weight", "input_layernorm.weight", d)
    rows = {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
    yield from linear("mixer.qkv_proj", rows, d, options.bias != "none")
    if options.qk_norm == "head":
        for x in "qk":
            yield vector(f"mixer.{x}_norm.weight", f"self_attn.{x}_norm.weight", dim)
    yield from linear("mixer.o_proj", {"self_attn.o_proj": d}, q, options.bias == "all")
    yield vector("ffn_norm.weight", "post_attention_layernorm.weight", d)
    yield from ffn(options, model)
