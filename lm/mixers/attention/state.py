"""The KV cache of attention, with a ring where there is a window."""

from typing import Self

import torch
from torch import Tensor

from ...parts.state import LayerState


class KVState(LayerState):
    """Keys and values [N, S, n_kv_heads, head_dim], S slots, at most `most`; which token lies in which slot is that of
    `visible`.

    Slots are allocated in doubling steps, so that a step writes its own tokens and copies no others. They lie head by
    head, [N, n_kv_heads, S, head_dim]: a query reads one stretch of memory.
    """

    def __init__(self, k: Tensor, v: Tensor, most: int | None = None):
        super().__init__()
        self.most = most
        self.load({"k": k, "v": v})

    @classmethod
    def empty(
        cls, n: int, heads: int, head_dim: int, most: int | None, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """For n sequences without a token."""
        k, v = (torch.empty(n, 0, heads, head_dim, dtype=dtype, device=device) for _ in range(2))
        return cls(k, v, most)

    def held(self) -> tuple[Tensor, Tensor]:
        """Views of the keys and values in use [N, used, n_kv_heads, head_dim]."""
        k, v = (self[name][:, :, : self.used].transpose(1, 2) for name in ("k", "v"))
        return k, v

    def write_rows(self, start: int, k: Tensor, v: Tensor) -> None:
        """Store k, v [N, T, n_kv_heads, head_dim] in the slots from `start` on."""
        self._reserve(start + k.shape[1])
        self["k"][:, :, start : start + k.shape[1]] = k.transpose(1, 2)
        self["v"][:, :, start : start + k.shape[1]] = v.transpose(1, 2)

    def write(self, end: int, rows: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [M, n_kv_heads, head_dim] in the `slots` [M], all below `end`, of sequences `rows` [M]."""
        self._reserve(end)
        self["k"][rows, :, slots] = k.to(self["k"].dtype)
        self["v"][rows, :, slots] = v.to(self["v"].dtype)

    def load(self, tensors: dict[str, Tensor]) -> None:
        super().load({name: tensor.transpose(1, 2).contiguous() for name, tensor in tensors.items()})
        self.used = tensors["k"].shape[1]

    def _live(self) -> dict[str, Tensor]:
        k, v = self.held()
        return {"k": k, "v": v}

    def _reserve(self, slots: int) -> None:
        self.used = max(self.used, slots)
        capacity = self["k"].shape[2]
        if self.used <= capacity:
            return
        grown = max(self.used, 2 * capacity)
        if self.most is not None:
            grown = min(grown, self.most)
        for name in ("k", "v"):
            old = self[name]
            new = old.new_zeros(*old.shape[:2], grown, old.shape[3])
            new[:, :, :capacity] = old
            self.update(**{name: new})
