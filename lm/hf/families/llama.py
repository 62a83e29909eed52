"""Our decoder and the Llama family of transformers, said once: configurations and tensor names, both ways.

The family is what a decoder of attention layers alone can be: llama, mistral (a sliding window), qwen2 (biases on q, k
and v, windows in some layers) and qwen3 (an RMSNorm on each head of q and k). The arithmetic is the same; q, k and v
are one projection here, and so are gate and up.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...parts.errors import ConfigError
from .allowed import EVERYWHERE, KnownOptions, differs, distinct, joined, refusals
from .llama_members import ARCHITECTURES, Architecture, architecture_of, choose_member
from .llama_moh import is_published_moh, published_heads
from .llama_rope import ROPE, rope_parameters, rope_section
from .llama_windows import window_keys, windows_of
from .stacked import Stacked, ffn, linear, vector, whole

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig

# sizes without which there is no model: theirs, ours
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "context",
}
NEEDED = (*SIZES, "num_attention_heads", "intermediate_size")

KNOWN = joined(
    EVERYWHERE,
    {
        "": KnownOptions(fixed={"zero_centered_norms": False}),
        "ffn": KnownOptions(translated=("bias",)),
        "attention": KnownOptions(
            translated=("n_heads", "n_kv_heads", "head_dim", "dropout", "ffn_hidden"),
            by_layer=("window",),
            given={"rope": "RoPE"},
            among={"qk_norm": ("none", "head"), "bias": ("none", "qkv", "all")},
            fixed={"norm": "pre", "gate": False, "freeze_qk": False, "tie_qk": False, "heads": None, "mask": None},
        ),
        "attention.rope": ROPE,
    },
)


def recipe_section(config: dict[str, Any]) -> dict[str, Any]:
    """The model section of a recipe that computes what a Llama-family config.json describes.

    Raises ConfigError for what the family or this package does not have: model type, activation, quantised weights,
    RoPE type.
    """
    architecture = architecture_of(config)
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
        "rope": rope_section(config),
    }
    if is_published_moh(config):
        attention["heads"] = published_heads(heads)
    windows = windows_of(config, architecture)
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


def _bias(config: dict[str, Any], architecture: Architecture) -> str:
    if len(architecture.biases) == 1:
        return architecture.biases[0]
    return "all" if config.get("attention_bias") else "none"


def _attention_layers(model: "BaseModelConfig") -> list[Any]:
    return [spec.options for spec in model.layer_specs() if spec.mixer == "attention"]


def _differences(model: "BaseModelConfig") -> Iterator[str]:
    """What no member of the family can be."""
    yield from refusals(model, KNOWN)
    sizes = distinct(layer.window for layer in _attention_layers(model) if layer.window)
    if len(sizes) > 1:
        yield differs("attention.window", sizes, "one size, in the layers that have a window")


def hf_config(model: "BaseModelConfig") -> dict[str, Any]:
    """The config.json of the first member of the family that computes what `model` does, apart from dtype and tokens.

    Dropout on the embedding and the z-loss belong to training and are left out. Raises ConfigError that names what
    every member lacks.
    """
    layers = _attention_layers(model)
    if found := list(_differences(model)):
        drop = ", or ask for all heads to be used (--drop-heads)" if any(layer.heads for layer in layers) else ""
        raise ConfigError(f"format llama: {'; '.join(found)}; use hybridlm{drop}")
    first, windows = layers[0], [layer.window for layer in layers]
    kind = choose_member(model, first, windows)
    architecture = ARCHITECTURES[kind]
    config = {
        "architectures": [architecture.name],
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
        "rope_parameters": rope_parameters(first.rope),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if "all" in architecture.biases:
        config["attention_bias"] = first.bias == "all"
    if architecture.ffn_bias:
        config["mlp_bias"] = bool(model.ffn and model.ffn.bias)
    return config | window_keys(windows, architecture)


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
