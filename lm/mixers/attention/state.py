"""The KV cache of attention, a ring where there is a window."""

import torch
from torch import Tensor

from ...parts.state import LayerState


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
