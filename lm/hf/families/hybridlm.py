"""Every model as `hybridlm`, this project's own type in transformers: our names, below `model.`; see modeling.py."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ...parts.errors import ConfigError
from .stacked import SavedTensor, Stacked

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig

MODEL_TYPE, ARCHITECTURE = "hybridlm", "HybridLMForCausalLM"


def hf_config(model: "BaseModelConfig") -> dict[str, Any]:
    """The config.json of a model, apart from dtype and tokens: its section of the recipe, defaults written out."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "model": model.model_dump(mode="json"),
        "tie_word_embeddings": model.tie_embeddings,
    }


def recipe_section(config: dict[str, Any]) -> dict[str, Any]:
    """The model section of a recipe. Raises ConfigError when the file has none."""
    if not isinstance(section := config.get("model"), dict):
        raise ConfigError("config.json: a hybridlm model without its section `model`; export the run again")
    return section


def tensors(model: "BaseModelConfig") -> Iterator[Stacked]:
    """Every tensor in the order of the layers; a tied head is the embedding and not named."""
    from ...model import HybridLM

    with torch.device("meta"):
        weights = HybridLM(model).state_dict()
    for name, tensor in weights.items():
        if not (model.tie_embeddings and name == "lm_head.weight"):
            yield Stacked(name, (SavedTensor(f"model.{name}", tuple(tensor.shape)),))
