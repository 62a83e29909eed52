"""The model types of transformers that this project writes and reads, by format and by `model_type`.

A family is a module with `hf_config(model)`, the config.json of a model section, which raises ConfigError for a model
that it cannot describe; `recipe_section(config)`, the way back; `tensors(model)`: what each of ours is made of; and,
unless the format is our own, `KNOWN`, the options that it knows.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..parts.errors import ConfigError
from ..parts.strict import nearest
from .families import hybridlm, llama, olmo_hybrid, qwen3_5
from .families.stacked import Stacked

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig
    from .source import Stored

# in the order in which `auto` tries them; the last describes every model
FAMILIES: dict[str, ModuleType] = {
    "llama": llama,
    "olmo_hybrid": olmo_hybrid,
    "qwen3_5": qwen3_5,
    "hybridlm": hybridlm,
}
FORMATS = ("auto", *FAMILIES)
MODEL_TYPES = dict.fromkeys(llama.ARCHITECTURES, llama) | {m.MODEL_TYPE: m for m in (olmo_hybrid, qwen3_5, hybridlm)}

UNREAD = {
    "qwen3_next": "Qwen3-Next has experts, which this project has not",
    "qwen3_5": "this is Qwen3.5 with images; save its language model alone, whose type is qwen3_5_text",
}


def choose_format(model: "BaseModelConfig", format: str = "auto") -> str:
    """The format that `format` stands for. Raises ConfigError for an unknown one, or one that cannot be this model."""
    if format in UNREAD and format not in FORMATS:
        raise ConfigError(f"format {format!r}: {UNREAD[format]}; qwen3_5 is the same model with a feed-forward")
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


def tensors_of(family: ModuleType, model: "BaseModelConfig", stored: "Mapping[str, Stored]") -> Iterator[Stacked]:
    """`family.tensors(model)` as a checkpoint has them, where a family has been written in several ways."""
    rows = family.tensors(model)
    return (olmo_hybrid.as_stored(row, stored) for row in rows) if family is olmo_hybrid else rows


def family_of(config: dict[str, Any]) -> ModuleType:
    """The family of a config.json. Raises ConfigError for a model type that is not read."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in MODEL_TYPES:
        return MODEL_TYPES[kind]
    # no nearest name: a type is not a slip of the pen, and another architecture's name would not make it one
    why = UNREAD.get(str(kind)) or ("it has experts, which this project has not" if "moe" in str(kind) else "")
    allowed = f"allowed: {', '.join(sorted(MODEL_TYPES))}; convert a model of one of these types"
    raise ConfigError(f"config.json: model_type {kind!r} is not supported; {why and why + '; '}{allowed}")
