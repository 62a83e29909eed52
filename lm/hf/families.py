"""The model types of transformers that this project writes and reads, by format and by `model_type`.

A family is a module with `hf_config(model)`, the config.json of a model section, which raises ConfigError for a model
that it cannot describe; `recipe_section(config)`, the way back; and `tensors(model)`: what each of ours is made of.
"""

from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..strict import nearest
from . import hybridlm, llama, olmo_hybrid

if TYPE_CHECKING:
    from ..config import BaseModelConfig

# in the order in which `auto` tries them; the last describes every model
FAMILIES: dict[str, ModuleType] = {"llama": llama, "olmo_hybrid": olmo_hybrid, "hybridlm": hybridlm}
FORMATS = ("auto", *FAMILIES)
MODEL_TYPES = dict.fromkeys(llama.ARCHITECTURES, llama) | {m.MODEL_TYPE: m for m in (olmo_hybrid, hybridlm)}


def choose_format(model: "BaseModelConfig", format: str = "auto") -> str:
    """The format that `format` stands for. Raises ConfigError for an unknown one, or one that cannot be this model."""
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: unknown; {nearest(format, FORMATS)}")
    if format != "auto":
        FAMILIES[format].hf_config(model)
        return format
    for name, family in FAMILIES.items():
        with suppress(ConfigError):
            family.hf_config(model)
            return name
    raise AssertionError("hybridlm describes every model")


def family_of(config: dict[str, Any]) -> ModuleType:
    """The family of a config.json. Raises ConfigError for a model type that is not read."""
    kind = str(config.get("model_type"))
    if kind not in MODEL_TYPES:
        raise ConfigError(f"config.json: model_type {kind!r} is not supported; {nearest(kind, MODEL_TYPES)}")
    return MODEL_TYPES[kind]
