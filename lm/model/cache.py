"""Decoding state: named tensors per layer, one row per sequence, with exact sizes and a file format."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors.torch import load_file, save_file

from ..parts.state import LayerState

if TYPE_CHECKING:
    from .decoder import HybridLM


class Cache:
    """The decoding state of a whole model for N sequences: one `LayerState` per layer and each sequence's length."""

    def __init__(self, layers: list[LayerState], n: int):
        self.layers = layers
        self.lengths = [0] * n

    def advance(self, lengths: tuple[int, ...]) -> None:
        """Count the tokens that every layer has just seen."""
        self.lengths = [past + new for past, new in zip(self.lengths, lengths, strict=True)]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def select(self, rows: list[int]) -> "Cache":
        """A copy that keeps, repeats or reorders sequences: beams, or many continuations of one prefix."""
        copy = Cache([_copy(layer, rows) for layer in self.layers], len(rows))
        copy.lengths = [self.lengths[row] for row in rows]
        return copy

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        tensors = {
            f"{i}.{k}": t.contiguous() for i, layer in enumerate(self.layers) for k, t in layer.tensors().items()
        }
        save_file({**tensors, "lengths": torch.tensor(self.lengths)}, path)

    @classmethod
    def load(cls, path: str | Path, model: "HybridLM") -> Self:
        """Read what `save` wrote, for the same model."""
        tensors = load_file(path)
        lengths = tensors.pop("lengths").tolist()
        cache = cls(model.new_cache(len(lengths)).layers, len(lengths))
        cache.lengths = lengths
        for i, layer in enumerate(cache.layers):
            prefix = f"{i}."
            mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            layer.load({name: t.to(model.device) for name, t in mine.items()})
        return cache


def _copy(layer: LayerState, rows: list[int]) -> LayerState:
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    twin.load({name: t[rows] for name, t in layer.tensors().items()})
    return twin
