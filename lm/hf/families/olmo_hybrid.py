"""OLMo Hybrid, transformers' `olmo_hybrid`: GatedDeltaNet and full attention, which vLLM serves.

It is the model of this project where attention layers put their norms after mixer and FFN and norm q and k over all
heads together, and the recurrent layers are pre-norm: `recipes/olmo-hybrid.yaml`. Configuration and tensors, both ways.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...parts.errors import ConfigError
from .allowed import KnownOptions, differs, distinct, joined
from .hybrids import HYBRIDS, common_config, common_section, differences, options_of
from .stacked import ConvKernels, SavedTensor, Stacked, ffn, linear, vector, whole

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig
    from ..source import Stored

MODEL_TYPE, ARCHITECTURE = "olmo_hybrid", "OlmoHybridForCausalLM"

KNOWN = joined(
    HYBRIDS,
    {
        "": KnownOptions(fixed={"zero_centered_norms": False}),
        "attention": KnownOptions(translated=("rope",), fixed={"norm": "post", "qk_norm": "full", "gate": False}),
        "attention.rope": KnownOptions(fixed={"fraction": 1.0}),
        "gated_deltanet": KnownOptions(translated=("allow_negative_eigenvalues",), fixed={"norm_eps": 1e-5}),
    },
)
# norms that transformers names otherwise when it saves a model that it has not loaded
OTHER_NAMES = {"input_layernorm": "attention_layer_norm", "post_attention_layernorm": "feedforward_layer_norm"}


def _differences(model: "BaseModelConfig") -> Iterator[str]:
    yield from differences(model, KNOWN)
    layers: list[Any] = [spec.options for spec in model.layer_specs() if spec.mixer == "attention"]
    for heads, width in distinct((layer.n_heads, layer.head_dim) for layer in layers):
        if heads * width != model.d_model:
            yield differs("attention.head_dim", width, f"d_model / n_heads, which is {model.d_model / heads:g}")


def hf_config(model: "BaseModelConfig") -> dict[str, Any]:
    """The config.json of a model, apart from dtype and tokens. Dropout and z-loss belong to training and are left out.

    Raises ConfigError that lists every option that has to differ, its value and the value needed.
    """
    if found := list(_differences(model)):
        raise ConfigError(f"format olmo_hybrid: {'; '.join(found)}; see recipes/olmo-hybrid.yaml, or use hybridlm")
    options = options_of(model)
    rope = options["attention"].rope
    return common_config(model) | {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "linear_allow_neg_eigval": options["gated_deltanet"].allow_negative_eigenvalues,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope.theta if rope else None},
    }


def recipe_section(config: dict[str, Any]) -> dict[str, Any]:
    """The model section of a recipe for a config.json. Raises ConfigError for what this project has no equal for, and
    KeyError for a size that is missing: transformers' defaults are those of one published model.
    """
    section = common_section(config, KNOWN, {"linear_use_gate": True})
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    section["attention"] |= {"head_dim": config["hidden_size"] // config["num_attention_heads"]}
    section["attention"] |= {"rope": None if theta is None else {"theta": theta}}
    section["gated_deltanet"] |= {"allow_negative_eigenvalues": config["linear_allow_neg_eigval"]}
    return section


def tensors(model: "BaseModelConfig") -> Iterator[Stacked]:
    """Every tensor in the order of the layers; a tied head is the embedding and not named."""
    return whole(model, (_layer(spec.mixer, spec.options, model) for spec in model.layer_specs()))


def _layer(mixer: str, options: Any, model: "BaseModelConfig") -> Iterator[Stacked]:
    norms = ("input", "post_attention") if options.norm == "pre" else ("post_attention", "post_feedforward")
    for ours, theirs in zip(("mixer", "ffn"), norms, strict=True):
        yield vector(f"{ours}_norm.weight", f"{theirs}_layernorm.weight", model.d_model)
    yield from (_attention if mixer == "attention" else _gated_deltanet)(options, model.d_model)
    yield from ffn(options, model)


def _attention(options: Any, d: int) -> Iterator[Stacked]:
    q, kv = options.n_heads * options.head_dim, options.n_kv_heads * options.head_dim
    yield from linear("mixer.qkv_proj", {f"self_attn.{x}_proj": n for x, n in zip("qkv", (q, kv, kv), strict=True)}, d)
    yield from linear("mixer.o_proj", {"self_attn.o_proj": d}, q)
    for x, n in (("q", q), ("k", kv)):
        yield vector(f"mixer.{x}_norm.weight", f"self_attn.{x}_norm.weight", n)


def _gated_deltanet(options: Any, d: int) -> Iterator[Stacked]:
    heads, k, v = options.n_v_heads, options.n_heads * options.head_dim, options.n_v_heads * options.v_head_dim
    channels = dict(zip("qkv", (k, k, v), strict=True))
    yield from linear("mixer.qkv_proj", {f"linear_attn.{x}_proj": n for x, n in channels.items()}, d)
    yield from linear("mixer.ab_proj", {"linear_attn.a_proj": heads, "linear_attn.b_proj": heads}, d)
    yield from linear("mixer.g_proj", {"linear_attn.g_proj": v}, d)
    yield from linear("mixer.o_proj", {"linear_attn.o_proj": d}, v)
    kernels = (SavedTensor(f"linear_attn.{x}_conv1d.weight", (n, 1, options.conv_size)) for x, n in channels.items())
    yield ConvKernels("mixer.conv", tuple(kernels))
    for name, n in (("o_norm.weight", options.v_head_dim), ("A_log", heads), ("dt_bias", heads)):
        yield vector(f"mixer.{name}", f"linear_attn.{name}", n)


def as_stored(row: Stacked, stored: "Mapping[str, Stored]") -> Stacked:
    """A row of `tensors` as a checkpoint has it: under the names of the published model, which servers know, or as
    transformers itself saves a model, with other norm names and the kernels joined or cut into thirds.
    """
    if isinstance(row, ConvKernels):
        return ConvKernels(row.name, _kernel_parts(row, stored))
    parts = []
    for part in row.parts:
        stem, layer_norm = part.name.rpartition(".")[0].rpartition(".")[::2]
        other = f"{stem}.{OTHER_NAMES.get(layer_norm)}.weight"
        parts.append(part._replace(name=other) if part.name not in stored and other in stored else part)
    return Stacked(row.name, tuple(parts))


def _kernel_parts(row: Stacked, stored: "Mapping[str, Stored]") -> tuple[SavedTensor, ...]:
    channels, width = row.shape
    if (fused := row.parts[0].name.replace("q_conv1d", "conv1d")) in stored:
        return (SavedTensor(fused, (channels, 1, width)),)
    thirds = tuple(
        SavedTensor(part.name, (*stored[part.name].shape[:1], 1, width)) for part in row.parts if part.name in stored
    )
    return thirds if sum(part.shape[0] for part in thirds) == channels else row.parts
