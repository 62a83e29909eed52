"""Gated linear attention in Triton: chunks in parallel where they are independent, one scan over them in between.

With a decay per key channel two launches forward, prepare and scan, and two backward, reverse scan and gradients; with
one per head or none the scan makes its scores itself and forward is one launch. With `recompute` backward first repeats
the forward launches, without outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.triton_chunk_scan import scan_backward, scan_forward, scan_states
from ..shared.triton_common import Tables, check_inputs, chunk_length, contiguous, padded, precision, tables
from .arguments import LinearArguments
from .triton_scalar import gradients_scalar
from .triton_vector import gradients_vector, prepare_vector


def run(x: LinearArguments) -> tuple[Tensor, Tensor]:
    """As the reference; head dims up to 256, float32, bfloat16 and float16.

    Half-precision inputs multiply in their own dtype and add in float32; the state between chunks stays float32.
    """
    K, V = x.q.shape[3], x.v.shape[3]
    check_inputs("gated_linear_attention", x.v, K=K, V=V)
    layout = tables(x.sequences, chunk_length(x.sequences, K, x.chunk_size), x.device)
    q, k, v, g, initial_state = inputs = contiguous(x.q, x.k, x.v, x.g, x.initial_state)
    with torch.cuda.device_of(v):
        if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs):
            return _GatedLinearAttention.apply(*inputs, x.scale, layout, x.recompute)  # type: ignore[return-value]
        return _forward(q, k, v, g, initial_state, x.scale, layout, keep_states=False)[:2]


class _GatedLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, g, initial_state, scale, layout, recompute):
        ctx.set_materialize_grads(False)
        o, state, h, prepared = _forward(q, k, v, g, initial_state, scale, layout, keep_states=not recompute)
        ctx.save_for_backward(q, k, v, g, initial_state, h, *(() if recompute else prepared))
        ctx.scale, ctx.layout = scale, layout
        return o, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do, dstate):
        q, k, v, g, initial_state, h, *prepared = ctx.saved_tensors
        scale, layout = ctx.scale, ctx.layout
        do, dstate = contiguous(torch.zeros_like(v) if do is None else do, dstate)
        with torch.cuda.device_of(v):
            scanned = _scanned(q, k, g, scale, prepared or _prepare(q, k, g, scale, layout))
            if h is None:
                write = {name: scanned[name] for name in ("k", "g", "decay") if name in scanned}
                h = scan_states(v=v, tables=layout, initial_state=initial_state, **write)
            initial = ctx.needs_input_grad[4]
            dv, dh, dinitial = scan_backward(do=do, tables=layout, dfinal=dstate, initial=initial, **scanned)
            dq, dk, dg = _gradients(q, k, v, g, do, h, dh, scale, layout)
        return dq, dk, dv, dg, dinitial, None, None, None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, initial_state: Tensor | None, scale: float, layout: Tables,
    *, keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Sequence[Tensor]]:  # fmt: skip
    """o, final state, the states before each chunk if kept, and what `_prepare` made."""
    prepared = _prepare(q, k, g, scale, layout)
    scanned = _scanned(q, k, g, scale, prepared)
    o, state, h = scan_forward(v=v, tables=layout, initial_state=initial_state, keep_states=keep_states, **scanned)
    return o, state, h, prepared


def _scanned(q: Tensor, k: Tensor, g: Tensor | None, scale: float, prepared: Sequence[Tensor]) -> dict[str, Any]:
    """What the scan over chunks reads besides v: the inputs, or what was prepared of them."""
    if not prepared:
        return {"q": q, "k": k, "g": g, "scale": scale}
    scores, read, written, decay = prepared
    return {"q": read, "k": written, "scores": scores, "decay": decay, "scale": 1.0}


def _prepare(q: Tensor, k: Tensor, g: Tensor | None, scale: float, layout: Tables) -> Sequence[Tensor]:
    """scores, read, written and decay of `prepare_vector` where every key channel has its own gate, else nothing."""
    if g is None or g.ndim == 3:
        return ()
    H, K = q.shape[2:]
    C = layout.size
    scores = q.new_empty(*q.shape[:3], C)
    read, written = torch.empty_like(q), torch.empty_like(k)
    decay = q.new_empty(layout.n_chunks, H, K, dtype=torch.float32)
    prepare_vector[(layout.n_chunks * H,)](
        q=q, k=k, g=g, scores=scores, read=read, written=written, decay=decay, chunks=layout.chunk, scale=scale,
        H=H, K=K, C=C, BK=_channels(K, q.dtype != torch.float32), LEVELS=C.bit_length() - 1, PREC=precision(q.dtype),
        num_warps=4,
    )  # fmt: skip
    return scores, read, written, decay


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, do: Tensor, h: Tensor, dh: Tensor, scale: float, layout: Tables
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dq, dk, dg."""
    (H, K), V, C = q.shape[2:], v.shape[3], layout.size
    dq, dk, dg = torch.empty_like(q), torch.empty_like(k), None if g is None else torch.empty_like(g)
    half = q.dtype != torch.float32
    BK = _channels(K, half)
    if g is None or g.ndim == 3:
        kernel, grid = gradients_scalar, (layout.n_chunks * H,)
        options = {"BV": min(padded(V), 64 if half else 32), "num_stages": 2 if half else 1}
    else:
        kernel, grid = gradients_vector, (layout.n_chunks * H * triton.cdiv(K, BK),)
        options = {"BV": min(padded(V), 32), "num_stages": 2 if half and V > 64 else 1, "LEVELS": C.bit_length() - 1}
    kernel[grid](
        q=q, k=k, v=v, g=g, do=do, h=h, dh=dh, dq=dq, dk=dk, dg=dg, chunks=layout.chunk, scale=scale,
        H=H, K=K, V=V, C=C, BK=BK, PREC=precision(q.dtype), num_warps=4 if half else 8, **options,
    )  # fmt: skip
    return dq, dk, dg


def _channels(K: int, half: bool) -> int:
    """Key channels worked on at a time: as many as the registers of a program hold."""
    return min(padded(K), 32 if half else 16)
