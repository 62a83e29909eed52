"""The decoding state of a whole model: one state per layer and each sequence's length, with exact sizes and a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors.torch import load_file, save_file

from ..parts.state import LayerState


class Model(Protocol):
    """What loading a cache needs of a model."""

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, n: int) -> "Cache": ...


class Cache:
    """What a model remembers of N sequences. A call that continues it changes it; `clone` first to keep what it was.

    Two caches never share layers: the one that did not make the last call is stale, and so is one whose last call
    failed half way. Both are refused.
    """

    def __init__(self, layers: list[LayerState], n: int):
        self.layers = layers
        self.lengths = [0] * n
        self._calls = 0
        self._inference = torch.is_inference_mode_enabled()

    @contextmanager
    def continuing(self, lengths: tuple[int, ...]) -> Iterator[list[LayerState]]:
        """Around the call in which every layer sees `lengths` more tokens of each sequence. Raises ValueError."""
        self._check()
        if self._inference and not torch.is_inference_mode_enabled():  # such tensors are of no use outside that mode
            for layer in self.layers:
                layer.load(layer.tensors())
        for layer in self.layers:
            layer.calls = self._calls + 1
        yield self.layers
        self._calls += 1
        self._inference = torch.is_inference_mode_enabled()
        self.lengths = [past + new for past, new in zip(self.lengths, lengths, strict=True)]

    def _check(self) -> None:
        """Raises ValueError where the layers are not those of `lengths`: a copy or a file would hide it."""
        if any(layer.calls not in (0, self._calls) for layer in self.layers):
            raise ValueError(
                "cache: is stale, its layers were continued through another cache or by a call that failed; continue "
                "Output.cache of the last call, or take cache.clone() before it"
            )

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def clone(self) -> "Cache":
        """A cache of its own with the same content."""
        self._check()
        return self._of([layer.clone() for layer in self.layers], self.lengths)

    def select(self, rows: list[int]) -> "Cache":
        """A copy that keeps, repeats or reorders sequences: beams, or many continuations of one prefix."""
        self._check()
        return self._of([layer.rows(rows) for layer in self.layers], [self.lengths[row] for row in rows])

    def handed_on(self, layers: list[LayerState], lengths: list[int]) -> "Cache":
        """A cache of these layers, some of them this one's, which is stale from now on."""
        heir = self._of(layers, lengths)
        heir._calls = self._calls + 1
        for layer in layers:
            layer.calls = heir._calls
        return heir

    def _of(self, layers: list[LayerState], lengths: list[int]) -> "Cache":
        copy = Cache(layers, len(lengths))
        copy.lengths = list(lengths)
        return copy

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        self._check()
        tensors = {
            f"{i}.{k}": t.contiguous() for i, layer in enumerate(self.layers) for k, t in layer.tensors().items()
        }
        save_file({**tensors, "lengths": torch.tensor(self.lengths)}, path)

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Self:
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
