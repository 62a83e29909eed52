"""Head-routed attention in Triton: two launches forward, the pairs in order and their attention, and two backward."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.sequences import HOST, Sequences
from ..shared.triton_common import check_inputs, padded, precision, tables
from .arguments import RoutedArguments
from .triton_kernels import routed_forward, routed_key_gradients, routed_order, routed_query_gradient

ORDER_BLOCK = 4096  # pairs


def run(x: RoutedArguments) -> Tensor:
    """As the reference, for float32, bfloat16 and float16 and head dims up to 256. Raises ValueError for others."""
    check_inputs("head_routed_attention", x.q, D=x.q.shape[-1])
    q, k, v, gate = by_rows(x.q), by_rows(x.k), by_rows(x.v), x.gate
    launch = _launch(x)
    with torch.cuda.device_of(q):
        if torch.is_grad_enabled() and any(a.requires_grad for a in (q, k, v, gate)):
            return _HeadRoutedAttention.apply(q, k, v, gate, launch)  # type: ignore[return-value]
        return launch.forward(q, k, v, gate, launch.order(gate), None)


def by_rows(x: Tensor) -> Tensor:
    """With neighbouring channels side by side, which is all that the kernels ask."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class _Order(NamedTuple):
    """See `triton_kernels`."""

    order: Tensor
    count: Tensor
    before: Tensor


class _Tiles(NamedTuple):
    """Rows, keys, and how a kernel's threads share them."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int


def _tiles(D: int, dtype: torch.dtype) -> tuple[_Tiles, _Tiles, _Tiles]:
    """Of forward, dq, and dk with dv: up to D = 128 in half precision what registers hold without spilling."""
    if dtype == torch.float32:
        if D > 128:
            return _Tiles(32, 16, 8, 1), _Tiles(32, 16, 8, 1), _Tiles(16, 32, 8, 1)
        return _Tiles(64, 32, 8, 1), _Tiles(32, 32, 8, 1), _Tiles(32, 32, 8, 1)
    if D > 128:
        return _Tiles(64, 64, 8, 2), _Tiles(64, 32, 8, 2), _Tiles(32, 64, 8, 2)
    return _Tiles(128, 64, 8, 3), _Tiles(128, 64, 8, 2), _Tiles(32, 128, 8, 2)


class _Launch(NamedTuple):
    """What the launches of one call have in common."""

    sequences: Sequences
    band: Tensor | None
    B: int
    T: int
    H: int
    HK: int
    D: int
    scale: float

    def order(self, gate: Tensor) -> _Order:
        n, G = len(self.sequences), self.H // self.HK
        order, count, before = (
            gate.new_empty(shape, dtype=torch.int32)
            for shape in ((self.HK, self.B * self.T * G), (n, self.HK), (self.HK, self.B * self.T))
        )
        block = min(ORDER_BLOCK, padded(self.sequences.longest * G))
        routed_order[(n * self.HK,)](
            gate=gate, order=order, count=count, before=before, gate_step=gate.stride(),
            sequence=tables(self.sequences, block, gate.device).sequence, T=self.T, n_tokens=self.B * self.T,
            H=self.H, HK=self.HK, BLOCK=block, num_warps=8,
        )  # fmt: skip
        return _Order(order, count, before)

    def forward(self, q, k, v, gate, rows: _Order, log_sum: Tensor | None) -> Tensor:
        o = q.new_empty(self.B, self.T, self.H, self.D)
        self._run(
            routed_forward, _tiles(self.D, q.dtype)[0], True, q=q, k=k, v=v, gate=gate, o=o, log_sum=log_sum,
            order=rows.order, count=rows.count,
        )  # fmt: skip
        return o

    def backward(self, q, k, v, gate, o, do, rows: _Order, log_sum: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dq, dk, dv, dgate."""
        _, by_rows, by_keys = _tiles(self.D, q.dtype)
        dq, dk, dv, dgate = (x.new_empty(x.shape) for x in (q, k, v, gate))
        given = {"q": q, "k": k, "v": v, "gate": gate, "do": do, "do_step": do.stride()[:3], "log_sum": log_sum}
        given |= {"delta": torch.empty_like(log_sum), "order": rows.order, "count": rows.count}
        self._run(routed_query_gradient, by_rows, True, **given, o=o, dq=dq, dgate=dgate)
        self._run(routed_key_gradients, by_keys, False, **given, dk=dk, dv=dv, before=rows.before)
        return dq, dk, dv, dgate

    def _run(self, kernel: Any, sizes: _Tiles, over_rows: bool, **given: Any) -> None:
        """A program for each tile of rows, or of keys, and key head."""
        q = given["q"]
        G, longest = self.H // self.HK, self.sequences.longest
        BM, BN = min(sizes.BM, padded(longest * G)), min(sizes.BN, padded(longest))
        make, size = (_row_tiles, (G, BM)) if over_rows else (_key_tiles, (BN,))
        tile = self.sequences.once(make, *size, q.device)
        kernel[(len(tile) * self.HK,)](
            **given, tile=tile, band=self.band, T=self.T, n_tokens=self.B * self.T, scale=self.scale,
            **{f"{name}_step": given[name].stride()[:3] for name in ("q", "k", "v", "gate")},
            H=self.H, HK=self.HK, D=self.D, BD=padded(self.D), BM=BM, BN=BN, PREC=precision(q.dtype),
            num_warps=sizes.num_warps, num_stages=sizes.num_stages,
        )  # fmt: skip


def _launch(x: RoutedArguments) -> _Launch:
    band = None
    if any(window < x.sequences.longest for window in x.window):
        band = x.sequences.once(_band, x.sink, x.window, x.device)
    B, T, H, D = x.q.shape
    return _Launch(x.sequences, band, B, T, H, x.k.shape[2], D, x.scale)


def _row_tiles(sequences: Sequences, group: int, size: int, device: torch.device) -> Tensor:
    """`tile` of the kernels for `group` rows a token. Those late in a document see most keys: they begin first."""
    tiles = sorted(_tiles_of(sequences, group, size), key=lambda tile: -tile[3])
    return torch.tensor(tiles, dtype=torch.int32, device=HOST).to(device)


def _key_tiles(sequences: Sequences, size: int, device: torch.device) -> Tensor:
    """The same for keys. Those with most tokens behind them are seen by most rows."""
    tiles = sorted(_tiles_of(sequences, 1, size), key=lambda tile: tile[3] - tile[1])
    return torch.tensor(tiles, dtype=torch.int32, device=HOST).to(device)


def _tiles_of(sequences: Sequences, per_token: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    for n, (start, length) in enumerate(zip(sequences.starts, sequences.lengths, strict=False)):
        for first in range(0, length * per_token, size):
            yield start, length, n, first


def _band(sequences: Sequences, sink: tuple[int, ...], window: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([sink, window], dtype=torch.int32, device=HOST).T.contiguous().to(device)


class _HeadRoutedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, gate, launch: _Launch):
        rows = launch.order(gate)
        log_sum = q.new_empty(rows.order.shape, dtype=torch.float32)
        o = launch.forward(q, k, v, gate, rows, log_sum)
        ctx.save_for_backward(q, k, v, gate, o, log_sum, *rows)
        ctx.launch = launch
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do):
        q, k, v, gate, o, log_sum, *rows = ctx.saved_tensors
        with torch.cuda.device_of(q):
            return *ctx.launch.backward(q, k, v, gate, o, by_rows(do), _Order(*rows), log_sum), None
