"""The members of the Llama family: what each model type of transformers can express, and which one a model is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ...mixers.attention.options import AttentionConfig
from ...parts.errors import ConfigError
from ...parts.strict import nearest
from .allowed import differs, distinct

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


def architecture_of(config: dict[str, Any]) -> Architecture:
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


def choose_member(model: "BaseModelConfig", options: AttentionConfig, windows: list[int | None]) -> str:
    """The first model type that can be `model`, whose layers have these options but for their windows.

    Raises ConfigError that says of each member what it needs otherwise.
    """
    lacking: list[str] = []
    for kind, architecture in ARCHITECTURES.items():
        if not (found := list(_differences(architecture, model, options, windows))):
            return kind
        lacking.append(f"{kind}: {', '.join(found)}")
    raise ConfigError(f"format llama: no member of the family can be this model ({'; '.join(lacking)}); use hybridlm")


def _differences(
    architecture: Architecture, model: "BaseModelConfig", options: AttentionConfig, windows: list[int | None]
) -> Iterator[str]:
    if options.bias not in architecture.biases:
        yield differs("attention.bias", options.bias, " or ".join(map(repr, architecture.biases)))
    if options.qk_norm != architecture.qk_norm:
        yield differs("attention.qk_norm", options.qk_norm, repr(architecture.qk_norm))
    if any(windows) and architecture.windows == "none":
        yield differs("attention.window", distinct(windows), "None in all layers")
    if any(windows) and not all(windows) and architecture.windows == "same":
        yield differs("attention.window", distinct(windows), "one value for all layers")
    if model.ffn and model.ffn.bias and not architecture.ffn_bias:
        yield differs("ffn.bias", True, "False")
    if architecture.heads_divide_width and model.d_model % options.n_heads:
        yield differs("attention.n_heads", options.n_heads, f"a divisor of d_model, which is {model.d_model}")
