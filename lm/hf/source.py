"""What a checkpoint offers, whatever files it lies in, and whether that is what its config says."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..parts.errors import CheckpointError, ConfigError
from .families.stacked import Stacked

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Stored(NamedTuple):
    """A tensor as it lies on the disk; `dtype` is what reading it gives."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Weights(Protocol):
    """Tensors on the disk by name; `path` is for messages."""

    path: Path
    stored: dict[str, Stored]

    def read(self, name: str) -> Tensor:
        """One tensor, whole."""
        ...


class ModelSource(Weights, Protocol):
    """Where a model comes from: weights, a configuration in the terms of transformers, and a tokenizer."""

    config: dict[str, Any]

    def write_tokenizer(self, folder: Path) -> None:
        """The files from which `Tokenizer.load` and AutoTokenizer make this model's tokenizer."""
        ...


def check(source: Weights, wanted: Iterable[Stacked]) -> list[Stacked]:
    """`wanted` as a list, if the source has exactly these tensors with these shapes.

    What is not learned may lie there too: inverse frequencies of old files, and a tied head beside its embedding.
    Raises CheckpointError that names the first tensor that is missing, unexpected or of another shape.
    """
    plan = list(wanted)
    shapes = {part.name: part.shape for stacked in plan for part in stacked.parts}
    for name, shape in shapes.items():
        if name in source.stored and source.stored[name].shape != shape:
            raise CheckpointError(
                f"{source.path}: tensor {name} has shape {list(source.stored[name].shape)}, its config says "
                f"{list(shape)}; restore the config that belongs to these weights"
            )
    if missing := [name for name in shapes if name not in source.stored]:
        fix = "get the whole checkpoint"
        if missing == [HEAD]:
            fix = "if the head is the embedding, set tie_word_embeddings to true in config.json"
        wants = f"its config says {list(shapes[missing[0]])}"
        raise CheckpointError(f"{source.path}: tensor {_several(missing)} missing, {wants}; {fix}")
    extra = [name for name in source.stored if name not in shapes and not name.endswith("rotary_emb.inv_freq")]
    if extra == [HEAD]:
        _check_tied(source)
    elif extra:
        has = f"of shape {list(source.stored[extra[0]].shape)}"
        fix = "restore the config that belongs to these weights"
        raise CheckpointError(f"{source.path}: tensor {_several(extra)} unexpected, {has}; {fix}")
    return plan


def check_float16(name: str, tensor: Tensor, where: object) -> None:
    """Raises ConfigError where float16 has made infinity of a weight."""
    if tensor.dtype == torch.float16 and not tensor.is_meta and not bool(tensor.isfinite().all()):
        raise ConfigError(f"dtype: float16 ends at 65504, tensor {name} of {where} does not; use bfloat16 or float32")


def _several(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _check_tied(source: Weights) -> None:
    if not torch.equal(source.read(HEAD), source.read(EMBEDDING)):
        raise CheckpointError(
            f"{source.path}: tensor {HEAD} differs from {EMBEDDING}, to which the config ties it; set "
            "tie_word_embeddings to false in config.json to keep both"
        )
