"""The launches of `triton_band_kernels`: a program for each tile of rows, or of keys, and key head."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .sequences import HOST, Sequences
from .triton_band_kernels import band_forward, band_key_gradients, band_query_gradient
from .triton_common import padded, precision


def by_rows(x: Tensor) -> Tensor:
    """With neighbouring channels side by side, which is all that the kernels ask."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class Order(NamedTuple):
    """Which pairs are rows, see `triton_band_kernels`; None throughout: all by number."""

    order: Tensor | None = None
    count: Tensor | None = None
    before: Tensor | None = None


ALL = Order()


class Tiles(NamedTuple):
    """Rows, keys, and how a kernel's threads share them."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int


def tiles(D: int, dtype: torch.dtype) -> tuple[Tiles, Tiles, Tiles]:
    """Of forward, dq, and dk with dv: up to D = 128 in half precision what registers hold without spilling."""
    if dtype == torch.float32:
        if D > 128:
            return Tiles(32, 16, 8, 1), Tiles(32, 16, 8, 1), Tiles(16, 32, 8, 1)
        return Tiles(64, 32, 8, 1), Tiles(32, 32, 8, 1), Tiles(32, 32, 8, 1)
    if D > 128:
        return Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 2), Tiles(32, 64, 8, 2)
    return Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2), Tiles(32, 128, 8, 2)


class BandLaunch(NamedTuple):
    """What the launches of one call have in common."""

    sequences: Sequences
    band: Tensor | None
    B: int
    T: int
    H: int
    HK: int
    D: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, sink: tuple[int, ...], window: tuple[int, ...], sequences: Sequences) -> Self:
        band = None
        if any(numbers < sequences.longest for numbers in window):
            band = sequences.once(_band, sink, window, q.device)
        (B, T, H, D), HK = q.shape, k.shape[2]
        return cls(sequences, band, B, T, H, HK, D)

    @property
    def n_rows(self) -> tuple[int, int]:
        """Shape of what is kept for each pair in order."""
        return self.HK, self.B * self.T * (self.H // self.HK)

    def forward(self, q, k, v, gate, rows: Order, log_sum: Tensor | None) -> Tensor:
        o = q.new_empty(self.B, self.T, self.H, self.D)
        given = {"q": q, "k": k, "v": v, "gate": gate, "o": o, "log_sum": log_sum}
        self._run(band_forward, tiles(self.D, q.dtype)[0], True, **given, order=rows.order, count=rows.count)
        return o

    def backward(self, q, k, v, gate, o, do, rows: Order, log_sum: Tensor) -> tuple[Any, ...]:
        """dq, dk, dv, and dgate with a gate, else None."""
        _, over_rows, over_keys = tiles(self.D, q.dtype)
        dq, dk, dv, dgate = (None if x is None else x.new_empty(x.shape) for x in (q, k, v, gate))
        given = {"q": q, "k": k, "v": v, "gate": gate, "do": do, "do_step": do.stride()[:3], "log_sum": log_sum}
        given |= {"delta": torch.empty_like(log_sum), "order": rows.order, "count": rows.count}
        self._run(band_query_gradient, over_rows, True, **given, o=o, dq=dq, dgate=dgate)
        self._run(band_key_gradients, over_keys, False, **given, dk=dk, dv=dv, before=rows.before)
        return dq, dk, dv, dgate

    def _run(self, kernel: Any, sizes: Tiles, over_rows: bool, **given: Any) -> None:
        q, gate = given["q"], given["gate"]
        G, longest = self.H // self.HK, self.sequences.longest
        BM, BN = min(sizes.BM, padded(longest * G)), min(sizes.BN, padded(longest))
        make, size = (_row_tiles, (G, BM)) if over_rows else (_key_tiles, (BN,))
        tile = self.sequences.once(make, *size, q.device)
        kernel[(len(tile) * self.HK,)](
            **given, tile=tile, band=self.band, T=self.T, n_tokens=self.B * self.T, scale=self.D**-0.5,
            **{f"{name}_step": given[name].stride()[:3] for name in ("q", "k", "v")},
            gate_step=None if gate is None else gate.stride(),
            H=self.H, HK=self.HK, D=self.D, BD=padded(self.D), BM=BM, BN=BN, PREC=precision(q.dtype),
            num_warps=sizes.num_warps, num_stages=sizes.num_stages,
        )  # fmt: skip


def _row_tiles(sequences: Sequences, group: int, size: int, device: torch.device) -> Tensor:
    """`tile` of the kernels for `group` rows a token. Those late in a document see most keys: they begin first."""
    found = sorted(_tiles_of(sequences, group, size), key=lambda tile: -tile[3])
    return torch.tensor(found, dtype=torch.int32, device=HOST).to(device)


def _key_tiles(sequences: Sequences, size: int, device: torch.device) -> Tensor:
    """The same for keys. Those with most tokens behind them are seen by most rows."""
    found = sorted(_tiles_of(sequences, 1, size), key=lambda tile: tile[3] - tile[1])
    return torch.tensor(found, dtype=torch.int32, device=HOST).to(device)


def _tiles_of(sequences: Sequences, per_token: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    for n, (start, length) in enumerate(zip(sequences.starts, sequences.lengths, strict=False)):
        for first in range(0, length * per_token, size):
            yield start, length, n, first


def _band(sequences: Sequences, sink: tuple[int, ...], window: tuple[int, ...], device: torch.device) -> Tensor:
    """At most the longest sequence: any number fits into int32."""
    numbers = torch.tensor([sink, window], device=HOST).clamp(max=sequences.longest)
    return numbers.to(torch.int32).T.contiguous().to(device)
