"""Qwen3.5 without images, transformers' `qwen3_5_text`: Qwen3-Next with a feed-forward in place of its experts.

GatedDeltaNet and attention with an output gate, which vLLM and SGLang serve; as `qwen3_next` neither serves a model
without experts. It is the model of this project with `attention.gate`, normed heads of q and k, RoPE on a part of the
channels and zero-centred norms: `recipes/qwen3-5.yaml`. Configuration and tensors, both ways.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...parts.errors import ConfigError
from .allowed import KnownOptions, differs, distinct, joined
from .hybrids import HYBRIDS, common_config, common_section, differences, options_of
from .stacked import ConvKernels, SavedTensor, Stacked, ffn, linear, vector, whole

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig

MODEL_TYPE, ARCHITECTURE = "qwen3_5_text", "Qwen3_5ForCausalLM"

KNOWN = joined(
    HYBRIDS,
    {
        "": KnownOptions(fixed={"zero_centered_norms": True}),
        "attention": KnownOptions(given={"rope": "RoPE"}, fixed={"norm": "pre", "qk_norm": "head", "gate": True}),
        "attention.rope": KnownOptions(translated=("fraction",)),
        "gated_deltanet": KnownOptions(translated=("norm_eps",), fixed={"allow_negative_eigenvalues": False}),
    },
)
PARTIAL = "partial_rotary_factor"
PUBLISHED_PART = 0.25  # of a head's channels that turn where config.json does not say


def _differences(model: "BaseModelConfig") -> Iterator[str]:
    yield from differences(model, KNOWN)
    layers: list[Any] = [spec.options for spec in model.layer_specs() if spec.mixer == "gated_deltanet"]
    for eps in distinct(layer.norm_eps for layer in layers):
        if eps != model.norm_eps:
            yield differs("gated_deltanet.norm_eps", eps, f"{model.norm_eps!r}, as there is one for all norms")


def hf_config(model: "BaseModelConfig") -> dict[str, Any]:
    """The config.json of a model, apart from dtype and tokens. Dropout and z-loss belong to training and are left out.

    Raises ConfigError that lists every option that has to differ, its value and the value needed.
    """
    if found := list(_differences(model)):
        raise ConfigError(f"format qwen3_5: {'; '.join(found)}; see recipes/qwen3-5.yaml, or use hybridlm")
    attention = options_of(model)["attention"]
    part = attention.rope.fraction
    config = common_config(model) | {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "head_dim": attention.head_dim,
        "attn_output_gate": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope.theta, PARTIAL: part},
        PARTIAL: part,  # where SGLang looks
    }
    return config | _interval(config["layer_types"])


def _interval(layer_types: list[str]) -> dict[str, int]:
    """SGLang knows every n-th layer as full attention and nothing else; it stops where there is no n to read."""
    n = layer_types.index("full_attention") + 1
    periodic = all((kind == "full_attention") == (i % n == 0) for i, kind in enumerate(layer_types, start=1))
    return {"full_attention_interval": n} if periodic else {}


def recipe_section(config: dict[str, Any]) -> dict[str, Any]:
    """The model section of a recipe for a config.json. Raises ConfigError for what this project has no equal for, and
    KeyError for a size that is missing: transformers' defaults are those of one published model.
    """
    section = common_section(config, KNOWN, {"attn_output_gate": True})
    rope = config.get("rope_parameters") or {}
    fraction = rope.get(PARTIAL, config.get(PARTIAL, PUBLISHED_PART))
    rope_section = {"theta": rope["rope_theta"], "fraction": fraction}
    section["attention"] |= {"head_dim": config["head_dim"], "rope": rope_section}
    section["gated_deltanet"] |= {"norm_eps": config["rms_norm_eps"]}
    return section


def tensors(model: "BaseModelConfig") -> Iterator[Stacked]:
    """Every tensor in the order of the layers; a tied head is the embedding and not named."""
    return whole(model, (_layer(spec.mixer, spec.options, model) for spec in model.layer_specs()))


def _layer(mixer: str, options: Any, model: "BaseModelConfig") -> Iterator[Stacked]:
    for ours, theirs in (("mixer", "input"), ("ffn", "post_attention")):
        yield vector(f"{ours}_norm.weight", f"{theirs}_layernorm.weight", model.d_model)
    yield from (_attention if mixer == "attention" else _gated_deltanet)(options, model.d_model)
    yield from ffn(options, model)


def _attention(options: Any, d: int) -> Iterator[Stacked]:
    q, kv = options.n_heads * options.head_dim, options.n_kv_heads * options.head_dim
    rows = {"self_attn.q_proj": 2 * q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}  # the gate is below q, by head
    yield from linear("mixer.qkv_proj", rows, d)
    yield from linear("mixer.o_proj", {"self_attn.o_proj": d}, q)
    for x in "qk":
        yield vector(f"mixer.{x}_norm.weight", f"self_attn.{x}_norm.weight", options.head_dim)


def _gated_deltanet(options: Any, d: int) -> Iterator[Stacked]:
    heads, k, v = options.n_v_heads, options.n_heads * options.head_dim, options.n_v_heads * options.v_head_dim
    yield from linear("mixer.qkv_proj", {"linear_attn.in_proj_qkv": 2 * k + v}, d)
    yield from linear("mixer.ab_proj", {"linear_attn.in_proj_a": heads, "linear_attn.in_proj_b": heads}, d)
    yield from linear("mixer.g_proj", {"linear_attn.in_proj_z": v}, d)
    yield from linear("mixer.o_proj", {"linear_attn.out_proj": d}, v)
    yield ConvKernels("mixer.conv", (SavedTensor("linear_attn.conv1d.weight", (2 * k + v, 1, options.conv_size)),))
    for ours, n in (("o_norm.weight", options.v_head_dim), ("A_log", heads), ("dt_bias", heads)):
        yield vector(f"mixer.{ours}", f"linear_attn.{ours.removeprefix('o_')}", n)
