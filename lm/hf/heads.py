"""All heads of a model, or those that the norm of the queries chooses: one set of weights, two configurations.

Conversion to Mixture-of-Head attention as the paper has it (arXiv 2410.11842, sec. 4.4): the router has no parameters
and gates are 0 or 1, so no tensor is added, changed or moved. Which heads are shared is a list of their numbers.
"""

from typing import TYPE_CHECKING, Any

import torch

from ..mixers.attention.head_options import HeadsConfig
from ..mixers.attention.options import AttentionConfig
from ..parts.errors import ConfigError
from ..recipe.layers import describe
from ..recipe.model import ModelConfig

if TYPE_CHECKING:
    from ..model import HybridLM
    from ..recipe.model import BaseModelConfig

ROUTER = "query_norm"


def attention_of(model: "BaseModelConfig", where: object) -> AttentionConfig:
    """Options of the first layer of a model whose heads can be routed.

    Raises ConfigError for one with other layers than attention, or with routed heads. where: how the message begins.
    """
    specs = model.layer_specs()
    if {spec.mixer for spec in specs} != {"attention"}:
        raise ConfigError(
            f"{where}: its layers are {describe(specs)}; allowed: attention alone, give a model of the Llama family"
        )
    options: list[Any] = [spec.options for spec in specs]
    if any(one.heads for one in options):
        raise ConfigError(f"{where}: its heads are routed already; give the checkpoint that it was made of")
    return options[0]


def finished_heads(model: "BaseModelConfig", heads: HeadsConfig, where: object) -> HeadsConfig:
    """`heads` with its numbers of shared and active heads as this model has them.

    Raises ConfigError as `attention_of`, and for numbers that do not fit the model.
    """
    options = attention_of(model, where)
    if heads.router != ROUTER:
        raise ConfigError(f"router {heads.router!r}: has weights, which {where} has not; allowed: {ROUTER}")
    try:
        finished = heads.resolve(options.n_heads, options.n_kv_heads, "attention")
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return heads.model_copy(update={"shared": finished.shared, "active": finished.active})


def with_heads(model: "BaseModelConfig", heads: HeadsConfig, where: object) -> ModelConfig:
    """The same model with `heads`, whose `shared_heads` may list a set for each layer. Raises as `finished_heads`."""
    finished_heads(model, heads.model_copy(update={"shared_heads": None}), where)
    section = model.model_dump(exclude_unset=True)
    section.setdefault("attention", {})["heads"] = heads.model_dump(exclude_defaults=True)
    return ModelConfig.parse(section, where=str(where))


def without_heads(model: "BaseModelConfig") -> ModelConfig:
    """The same model with all heads of every layer in use: another function, unless they were already.

    Raises ConfigError where no heads are routed, or by a router with weights.
    """
    found = [heads for spec in model.layer_specs() if (heads := getattr(spec.options, "heads", None))]
    if not found:
        raise ConfigError("heads: none are routed in this model, so there is nothing to drop; export it as it is")
    if learned := [heads.router for heads in found if heads.router != ROUTER]:
        raise ConfigError(
            f"heads: router {learned[0]!r} has learned weights, and without it another model would be left; only "
            f"{ROUTER} can be dropped"
        )
    section = model.model_dump(exclude_unset=True)
    for name, options in section.items():
        if isinstance(options, dict) and "heads" in options:
            section[name] = options | {"heads": None}
    for key in ("pattern", "layers"):
        if section.get(key):
            section[key] = [_without(layer) for layer in section[key]]
    return ModelConfig.parse(section)


def _without(layer: Any) -> Any:
    """One entry of a pattern, with no heads of its own."""
    if isinstance(layer, str):
        return layer
    return {name: own | {"heads": None} if "heads" in own else own for name, own in layer.items()}


def reconfigured(model: "HybridLM", config: ModelConfig) -> "HybridLM":
    """Another model with the very tensors of `model`, in evaluation mode."""
    from ..model import HybridLM

    with torch.device("meta"):
        other = HybridLM(config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval()
