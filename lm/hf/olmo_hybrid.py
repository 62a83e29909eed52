"""OLMo Hybrid, transformers' `olmo_hybrid`: GatedDeltaNet and full attention, which vLLM and SGLang serve.

It is the model of this project where attention layers put their norms after mixer and FFN and norm q and k over all
heads together, and the recurrent layers are pre-norm: `recipes/olmo-hybrid.yaml`. Configuration and tensors, both ways.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import ConfigError
from .llama import Part, Stacked

if TYPE_CHECKING:
    from ..config import BaseModelConfig

MODEL_TYPE, ARCHITECTURE = "olmo_hybrid", "OlmoHybridForCausalLM"
LAYERS = {"gated_deltanet": "linear_attention", "attention": "full_attention"}

# options with one possible value
NEEDED: dict[str, dict[str, Any]] = {
    "attention": {"norm": "post", "qk_norm": "full", "bias": "none", "window": None},
    "gated_deltanet": {"norm": "pre", "norm_eps": 1e-5},
}
# options that all layers of a kind must share, and the names of those in the configuration
SHARED: dict[str, dict[str, str]] = {
    "attention": {"n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"},
    "gated_deltanet": {
        "n_heads": "linear_num_key_heads",
        "n_v_heads": "linear_num_value_heads",
        "head_dim": "linear_key_head_dim",
        "v_head_dim": "linear_value_head_dim",
        "conv_size": "linear_conv_kernel_dim",
        "allow_negative_eigenvalues": "linear_allow_neg_eigval",
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


def _differences(model: "BaseModelConfig") -> Iterator[tuple[str, Any, str]]:
    """Every option by which the model is no OLMo Hybrid: its name, its value and what is needed."""
    specs = model.layer_specs()
    names = {spec.mixer for spec in specs}
    if names != LAYERS.keys():
        yield "layers", sorted(names), "both attention and gated_deltanet, and no other"
    for option, needed in (("positions", "none"), ("logit_softcap", None)):
        if getattr(model, option) != needed:
            yield option, getattr(model, option), repr(needed)
    if model.ffn is None:
        yield "ffn", None, "a feed-forward"
    elif model.ffn.bias:
        yield "ffn.bias", True, "False"
    if len(widths := _distinct(spec.options.ffn_hidden for spec in specs)) > 1:
        yield "ffn_hidden", widths, "one width for all layers"
    for name in sorted(names & LAYERS.keys()):
        yield from _layer_differences(name, [spec.options for spec in specs if spec.mixer == name], model.d_model)


def _layer_differences(name: str, layers: list[Any], d_model: int) -> Iterator[tuple[str, Any, str]]:
    for option, needed in NEEDED[name].items():
        for value in _distinct(getattr(layer, option) for layer in layers):
            if value != needed:
                yield f"{name}.{option}", value, repr(needed)
    for option in (*SHARED[name], *(("head_dim", "rope") if name == "attention" else ())):
        if len(values := _distinct(getattr(layer, option) for layer in layers)) > 1:
            yield f"{name}.{option}", values, "one value for all layers"
    if name == "attention":
        for heads, width in _distinct((layer.n_heads, layer.head_dim) for layer in layers):
            if heads * width != d_model:
                yield "attention.head_dim", width, f"d_model / n_heads, which is {d_model / heads:g}"
        for scaling in _distinct(layer.rope.scaling for layer in layers if layer.rope is not None):
            if scaling != "none":
                yield "attention.rope.scaling", scaling, "'none'"


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def hf_config(model: "BaseModelConfig") -> dict[str, Any]:
    """The config.json of a model, apart from dtype and tokens. Dropout and z-loss belong to training and are left out.

    Raises ConfigError that lists every option that has to differ, its value and the value needed.
    """
    if found := [f"{name} is {value!r}, needs {needed}" for name, value, needed in _differences(model)]:
        raise ConfigError(f"format olmo_hybrid: {'; '.join(found)}; see recipes/olmo-hybrid.yaml, or use hybridlm")
    options: dict[str, Any] = {spec.mixer: spec.options for spec in model.layer_specs()}
    fields = {theirs: getattr(model, ours) for ours, theirs in SIZES.items()}
    for name, shared in SHARED.items():
        fields |= {theirs: getattr(options[name], ours) for ours, theirs in shared.items()}
    rope = options["attention"].rope
    return fields | {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "intermediate_size": _hidden(model),
        "layer_types": [LAYERS[spec.mixer] for spec in model.layer_specs()],
        "rope_parameters": {"rope_type": "default", "rope_theta": rope.theta if rope else None},
        "hidden_act": "silu",
        "attention_bias": False,
        "pad_token_id": None,
    }


def _hidden(model: "BaseModelConfig") -> int:
    assert model.ffn is not None
    return model.layer_specs()[0].options.ffn_hidden or model.ffn.width(model.d_model)


def recipe_section(config: dict[str, Any]) -> dict[str, Any]:
    """The model section of a recipe for a config.json. Raises ConfigError for what this project has no equal for.

    Sizes that the file leaves out are transformers' defaults: pass it through OlmoHybridConfig first.
    """
    rope = config.get("rope_parameters") or {"rope_theta": None}
    problems = [
        f"{name} is {value!r}, only {allowed!r} is supported"
        for name, value, allowed in (
            ("hidden_act", config["hidden_act"], "silu"),
            ("attention_bias", config["attention_bias"], False),
            ("rope_parameters.rope_type", rope.get("rope_type", "default"), "default"),
        )
        if value != allowed
    ]
    if problems:
        raise ConfigError(f"olmo_hybrid config.json: {'; '.join(problems)}")
    kinds = {theirs: ours for ours, theirs in LAYERS.items()}
    mixers = {name: NEEDED[name] | {ours: config[theirs] for ours, theirs in SHARED[name].items()} for name in LAYERS}
    theta = rope["rope_theta"]
    mixers["attention"] |= {"head_dim": config["hidden_size"] // config["num_attention_heads"]}
    mixers["attention"] |= {"rope": None if theta is None else {"theta": theta}}
    sizes = {ours: config[theirs] for ours, theirs in SIZES.items()}
    layers = [kinds[kind] for kind in config["layer_types"]]
    return sizes | mixers | {"layers": layers, "ffn": {"hidden": config["intermediate_size"]}}


class Kernel(Stacked):
    """A convolution kernel: [channels, width] here, [channels, 1, width] there."""

    @property
    def shape(self) -> tuple[int, ...]:
        channels, _, width = self.parts[0].shape
        return channels, width

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].squeeze(1)

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        return {self.parts[0].name: tensor.unsqueeze(1)}


def tensors(model: "BaseModelConfig") -> Iterator[Stacked]:
    """Every tensor in the order of the layers; a tied head is the embedding and not named."""
    d = model.d_model
    yield Stacked("embed.weight", (Part("model.embed_tokens.weight", (model.vocab_size, d)),))
    for i, spec in enumerate(model.layer_specs()):
        for row in _layer(spec.mixer, spec.options, d, _hidden(model)):
            parts = tuple(Part(f"model.layers.{i}.{part.name}", part.shape) for part in row.parts)
            yield type(row)(f"blocks.{i}.{row.name}", parts)
    yield Stacked("norm.weight", (Part("model.norm.weight", (d,)),))
    if not model.tie_embeddings:
        yield Stacked("lm_head.weight", (Part("lm_head.weight", (model.vocab_size, d)),))


def _layer(mixer: str, options: Any, d: int, hidden: int) -> Iterator[Stacked]:
    norms = ("input", "post_attention") if options.norm == "pre" else ("post_attention", "post_feedforward")
    for ours, theirs in zip(("mixer", "ffn"), norms, strict=True):
        yield Stacked(f"{ours}_norm.weight", (Part(f"{theirs}_layernorm.weight", (d,)),))
    yield from _attention(options, d) if mixer == "attention" else _gated_deltanet(options, d)
    yield _linear("ffn.gate_up_proj", {"mlp.gate": hidden, "mlp.up": hidden}, d)
    yield _linear("ffn.down_proj", {"mlp.down": d}, hidden)


def _attention(options: Any, d: int) -> Iterator[Stacked]:
    q, kv = options.n_heads * options.head_dim, options.n_kv_heads * options.head_dim
    yield _linear("mixer.qkv_proj", {f"self_attn.{x}": n for x, n in zip("qkv", (q, kv, kv), strict=True)}, d)
    yield _linear("mixer.o_proj", {"self_attn.o": d}, q)
    for x, n in (("q", q), ("k", kv)):
        yield Stacked(f"mixer.{x}_norm.weight", (Part(f"self_attn.{x}_norm.weight", (n,)),))


def _gated_deltanet(options: Any, d: int) -> Iterator[Stacked]:
    heads, k, v = options.n_v_heads, options.n_heads * options.head_dim, options.n_v_heads * options.v_head_dim
    yield _linear("mixer.qkv_proj", {f"linear_attn.{x}": n for x, n in zip("qkv", (k, k, v), strict=True)}, d)
    yield _linear("mixer.ab_proj", {"linear_attn.a": heads, "linear_attn.b": heads}, d)
    yield _linear("mixer.g_proj", {"linear_attn.g": v}, d)
    yield _linear("mixer.o_proj", {"linear_attn.o": d}, v)
    yield Kernel("mixer.conv", (Part("linear_attn.conv1d.weight", (2 * k + v, 1, options.conv_size)),))
    for name, n in (("o_norm.weight", options.v_head_dim), ("A_log", heads), ("dt_bias", heads)):
        yield Stacked(f"mixer.{name}", (Part(f"linear_attn.{name}", (n,)),))


def _linear(name: str, rows: dict[str, int], columns: int) -> Stacked:
    return Stacked(f"{name}.weight", tuple(Part(f"{x}_proj.weight", (n, columns)) for x, n in rows.items()))
