"""What the C++ of the attention operators is given: see band.h and attention_step.h."""

from collections.abc import Sequence as Ints
from typing import Any

import torch
from torch import Tensor

from ..shared.band import pairs, seen_by_head
from ..shared.checks import state_dtype
from .library import NativeCall, NativeKernel, kernel_dtype

PROBLEM = ("q", "k", "v", "strides", "windows", "sinks", "lse", "o")
GRADIENTS = ("dout", "dq", "dk", "dv")
STEP = ("q", "k", "v", "gate", "seen", "strides", "o")


def launch(
    kernel: NativeKernel, q: Tensor, k: Tensor, v: Tensor, sink: Ints[int], window: Ints[int], bounds: Ints[int],
    **others: Tensor | None,
) -> None:  # fmt: skip
    """q [B, T, H, D]; k, v [B, T, H_kv, D]; others: `lse`, `o` and the rest of the kernel's tensors."""
    q, k, v = (_in_place(x) for x in (q, k, v))
    strides = torch.tensor([stride for x in (q, k, v) for stride in x.stride()[1:3]])
    (H, D), kv_heads = q.shape[2:], k.shape[2]
    kernel(
        NativeCall(q.dtype, bounds, heads=kv_heads, K=D, V=D, group=H // kv_heads, scale=D**-0.5),
        q=q, k=k, v=v, strides=strides,
        windows=torch.tensor(window) if window else None, sinks=torch.tensor(sink) if window else None, **others,
    )  # fmt: skip


def results(make: Any, q: Tensor) -> tuple[Tensor, Tensor]:
    """o and lse."""
    return make(q.shape, dtype=q.dtype), make(q.shape[:3], dtype=state_dtype(q.dtype))


def step(kernel: NativeKernel, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, seen: Tensor | None) -> Tensor:
    """One query of each sequence [N, H, D] over its keys [N, S, H_kv, D], in q's dtype."""
    dtype, (N, H, D), (S, kv_heads) = q.dtype, q.shape, k.shape[1:3]
    q, k, v = (a.to(kernel_dtype(dtype)) for a in (q, k, v))
    q, (k, v) = q.contiguous(), (a if a.stride(3) == 1 else a.contiguous() for a in (k, v))
    strides = [*k.stride()[:3], *v.stride()[:3]]
    if seen is not None:
        seen = seen_by_head(seen, kv_heads)
        strides += seen.stride()
    o, bounds = torch.empty_like(q), [n * S for n in range(N + 1)]
    kernel(
        NativeCall(q.dtype, bounds, heads=kv_heads, K=D, V=D, group=H // kv_heads, scale=D**-0.5),
        q=q, k=k, v=v, gate=None if gate is None else gate.to(state_dtype(dtype)).contiguous(), seen=seen,
        strides=torch.tensor(strides), o=o,
    )  # fmt: skip
    return o.to(dtype)


def flops(products: int, q: Ints[int], k: Ints[int], sink: Ints[int], window: Ints[int], bounds: Ints[int]) -> int:
    """Of so many products with every pair of a query and a key that it sees; q and k are shapes."""
    return 2 * products * q[3] * pairs(q[2] // k[2], k[2], sink, window, bounds)


def _in_place(x: Tensor) -> Tensor:
    """x [B, T, heads, D] itself if its vectors are dense and its rows follow one another, else a copy."""
    fits = x.stride(3) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    return x if fits else x.contiguous()
