"""The gated delta rule in four Triton launches: per chunk, forward scan; reverse scan, per chunk."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.triton_chunk_scan import scan_backward, scan_forward, scan_states
from ..shared.triton_common import Tables, check_inputs, chunk_length, contiguous, padded, precision, tables
from .arguments import DeltaArguments
from .triton_kernels import delta_gradients, delta_prepare

FLOAT32_CHUNK = 16  # registers; and the shorter the chunk, the closer to the recurrence's error


def run(x: DeltaArguments) -> tuple[Tensor, Tensor]:
    """As the reference, for float32, bfloat16 and float16 and head dims up to 256.

    Keys wider than 128 are worked on in chunks of at most 32 tokens, float32 in chunks of 16. Raises ValueError for
    other dtypes and dims.
    """
    K, dtype = x.q.shape[-1], x.v.dtype
    check_inputs("gated_delta_rule", x.v, K=K, V=x.v.shape[-1])
    chunk_size = min(x.chunk_size, FLOAT32_CHUNK) if dtype == torch.float32 else x.chunk_size
    layout = tables(x.sequences, chunk_length(x.sequences, K, chunk_size), x.device)
    inputs = contiguous(x.q, x.k, x.v, x.g, x.beta, x.initial_state)
    with torch.cuda.device_of(x.q):
        if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs):
            return _GatedDeltaRule.apply(*inputs, x.scale, layout, x.recompute)  # type: ignore[return-value]
        q, k, v, g, beta, initial_state = inputs
        o, state, _ = scan_forward(
            q, k, v, tables=layout, scale=x.scale, initial_state=initial_state, keep_states=False,
            g=g, beta=beta, inverse=_prepare(k, v, g, beta, layout),
        )  # fmt: skip
    return o, state


class _GatedDeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, g, beta, initial_state, scale, layout, recompute):
        ctx.set_materialize_grads(False)
        gates = {"tables": layout, "g": g, "beta": beta, "inverse": _prepare(k, v, g, beta, layout)}
        e = None if recompute else torch.empty_like(v)
        o, state, h = scan_forward(
            q, k, v, scale=scale, initial_state=initial_state, keep_states=not recompute, e=e, **gates
        )
        rebuild = (v, initial_state) if recompute else (None, None)
        ctx.save_for_backward(q, k, g, beta, gates["inverse"], e, h, *rebuild)
        ctx.scale, ctx.layout = scale, layout
        return o, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do, dstate):
        q, k, g, beta, inverse, e, h, v, initial_state = ctx.saved_tensors
        do, dstate = contiguous(do, dstate)
        gates = {"tables": ctx.layout, "g": g, "beta": beta, "inverse": inverse}
        with torch.cuda.device_of(q):
            if v is not None:
                e = torch.empty_like(v)
                h = scan_states(k, v, initial_state=initial_state, e=e, **gates)
            if do is None:
                do = torch.zeros_like(e)
            dv, dh, dinitial = scan_backward(
                q, k, do, scale=ctx.scale, dfinal=dstate, initial=ctx.needs_input_grad[5], **gates
            )
            dq, dk, dg, dbeta = _gradients(q, k, g, beta, h, e, do, dv, dh, ctx.scale, ctx.layout)
        return dq, dk, dv, dg, dbeta, dinitial, None, None, None


def _prepare(k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, layout: Tables) -> Tensor:
    """T [B, T, HV, C]."""
    B, T, H, K = k.shape
    HV = v.shape[2]
    inverse = v.new_empty(B, T, HV, layout.size)
    delta_prepare[(layout.n_chunks * H,)](
        k=k, g=g, beta=beta, inverse=inverse, chunk=layout.chunk,
        H=H, HV=HV, K=K, C=layout.size, BK=padded(K), PREC=precision(v.dtype), num_warps=4, num_stages=1,
    )  # fmt: skip
    return inverse


def _gradients(
    q: Tensor,
    k: Tensor,
    g: Tensor | None,
    beta: Tensor,
    h: Tensor,
    e: Tensor,
    do: Tensor,
    dv: Tensor,
    dh: Tensor,
    scale: float,
    layout: Tables,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """dq, dk, dg, dbeta."""
    H, K = k.shape[2:]
    HV, V = dv.shape[2:]
    dq, dk, dbeta = torch.empty_like(q), torch.empty_like(k), torch.empty_like(beta)
    dg = None if g is None else torch.empty_like(g)
    # two steps over V at least: a loop of one is unrolled, which spills registers
    BV = min(128 // q.element_size(), max(16, padded(V) // 2))
    delta_gradients[(layout.n_chunks * H,)](
        q=q, k=k, g=g, beta=beta, h=h, e=e, do=do, dv=dv, dh=dh, dq=dq, dk=dk, dg=dg, dbeta=dbeta,
        chunk=layout.chunk, scale=scale, H=H, HV=HV, K=K, V=V, C=layout.size, BK=padded(K), BV=BV,
        PREC=precision(q.dtype), num_warps=8, num_stages=2,
    )  # fmt: skip
    return dq, dk, dg, dbeta
