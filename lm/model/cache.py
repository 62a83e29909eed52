"""Decoding state: named tensors per layer, one row per sequence, with exact sizes and a file format."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from .decoder import HybridLM


class LayerState:
    """What one layer remembers between calls: named tensors, each [N, ...] with one row per sequence."""

    def __init__(self, **tensors: Tensor):
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def update(self, **tensors: Tensor) -> None:
        """Replace tensors by their new values."""
        self._tensors.update(tensors)

    def tensors(self) -> dict[str, Tensor]:
        """The state's content, exactly as large as what is remembered."""
        return dict(self._tensors)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over `tensors()` of another state of the same layer."""
        self._tensors = dict(tensors)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())


class KVState(LayerState):
    """Keys and values [N, S, n_kv_heads, head_dim], S slots; the token at position p lies in slot p, or p mod `window`.

    Slots are allocated in doubling steps, so appending is cheap on average; `tensors()` shows only those in use.
    """

    def __init__(self, k: Tensor, v: Tensor, window: int | None = None):
        super().__init__(k=k, v=v)
        self.window = window
        self.used = k.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        return {name: t[:, : self.used] for name, t in self._tensors.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        super().load(tensors)
        self.used = tensors["k"].shape[1]

    def slot_positions(self, seen: Tensor) -> Tensor:
        """Position held by each slot [N, S] when sequence n has `seen[n]` tokens; negative where the slot is empty."""
        slots = torch.arange(self.used, device=seen.device)
        last = seen[:, None] - 1
        if self.window is None:
            return torch.where(slots <= last, slots, -1)
        return last - (last - slots) % self.window

    def write(self, rows: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [M, n_kv_heads, head_dim], the tokens at `positions` [M] of sequences `rows` [M]."""
        if not len(positions):
            return
        slots = positions if self.window is None else positions % self.window
        self._reserve(int(slots.max()) + 1)
        self._tensors["k"][rows, slots] = k.to(self._tensors["k"].dtype)
        self._tensors["v"][rows, slots] = v.to(self._tensors["v"].dtype)

    def _reserve(self, slots: int) -> None:
        self.used = max(self.used, slots)
        capacity = self._tensors["k"].shape[1]
        if self.used <= capacity:
            return
        grown = max(self.used, 2 * capacity)
        if self.window is not None:
            grown = min(grown, self.window)
        for name, old in self._tensors.items():
            new = old.new_zeros(old.shape[0], grown, *old.shape[2:])
            new[:, :capacity] = old
            self._tensors[name] = new


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
