"""Short causal depthwise convolution over time, with carried state and document boundaries."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .shared.sequences import Sequences
from .traced import LIBRARY, define

BLOCK = 256  # rows of the weight gradient's reduction that stay in cache


def short_conv(
    x: Tensor,
    weight: Tensor,
    *,
    activation: str | None = "silu",
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    sequences: Sequences | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y_t = act( sum_j weight[:, W-1-j] * x_{t-j} ), j = 0..W-1, within each sequence; as nn.Conv1d padded on the left.

    x: [B, T, D]. weight: [D, W], cast to x's dtype. activation: "silu" or None. initial_state: [N, W-1, D], the inputs
    before the first token, default 0; N = B sequences, or cu_seqlens' documents packed along T with B = 1. sequences:
    the same, made once for many calls, in the place of cu_seqlens.

    Returns y [B, T, D] and, if asked for, the last W-1 inputs [N, W-1, D], else None. Raises ValueError on inputs that
    do not fit.
    """
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[2]:
        shapes = f"{list(x.shape)} and {list(weight.shape)}"
        raise ValueError(f"x and weight have shapes {shapes}; allowed: [B, T, D] and [D, W]")
    if activation not in ("silu", None):
        raise ValueError(f"activation is {activation!r}; allowed: 'silu' or None")
    sequences = Sequences.given(x, cu_seqlens, sequences)
    width = weight.shape[1]
    expected = [len(sequences), width - 1, x.shape[2]]
    if initial_state is None:
        initial_state = x.new_zeros(expected)
    elif list(initial_state.shape) != expected or initial_state.dtype != x.dtype:
        raise ValueError(
            f"initial_state is {initial_state.dtype} {list(initial_state.shape)}; "
            f"allowed: {x.dtype} {expected}, [N, W-1, D]"
        )
    lengths, weight = sequences.lengths, weight.to(x.dtype)
    silu = activation == "silu"
    if sequences.bounds is None:
        extended = torch.cat([initial_state, x], dim=1)  # [B, W-1 + T, D]
        y = _causal_conv(extended, weight, silu)
        return y, extended[:, extended.shape[1] - (width - 1) :] if output_final_state else None
    # each document behind its own W-1 inputs; the W-1 outputs that mix two documents are dropped
    pieces = zip(initial_state, x[0].split(lengths), strict=True)
    extended = torch.cat([part for pair in pieces for part in pair])  # [T + N (W-1), D]
    outputs = _causal_conv(extended[None], weight, silu)[0].split([n for a in lengths for n in (a, width - 1)][:-1])
    y = torch.cat(outputs[::2])[None]
    if not output_final_state:
        return y, None
    documents = extended.split([width - 1 + n for n in lengths])
    return y, torch.stack([document[len(document) - (width - 1) :] for document in documents])


@torch.no_grad()
def short_conv_step(x: Tensor, weight: Tensor, *, state: Tensor, activation: str | None = "silu") -> Tensor:
    """One token of `short_conv` for each of N sequences, without autograd: updates `state` in place.

    x: [N, D]. weight: [D, W]. state: [N, W-1, D], the inputs before, of any floating dtype. Returns y [N, D]. Raises
    ValueError on inputs that do not fit.
    """
    expected = [len(x), weight.shape[1] - 1, weight.shape[0]]
    if x.ndim != 2 or x.shape[1] != weight.shape[0] or list(state.shape) != expected:
        shapes = f"{list(x.shape)}, {list(weight.shape)} and {list(state.shape)}"
        raise ValueError(f"x, weight and state have shapes {shapes}; allowed: [N, D], [D, W] and [N, W-1, D]")
    if activation not in ("silu", None):
        raise ValueError(f"activation is {activation!r}; allowed: 'silu' or None")
    seen = torch.cat((state.to(x.dtype), x[:, None]), 1)  # [N, W, D]
    state.copy_(seen[:, 1:])
    exact = torch.promote_types(x.dtype, torch.float32)
    y = (seen.to(exact) * weight.to(x.dtype).t()).sum(1).to(x.dtype)
    return F.silu(y) if activation else y


def _causal_conv(x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    """x [N, W-1 + T, D] -> [N, T, D]."""
    if torch.compiler.is_compiling():
        return CONV(x, weight, silu)
    with torch.autocast(x.device.type, enabled=False):
        return _CausalConv.apply(x, weight, silu)  # type: ignore[return-value]


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, silu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.silu = silu
        return _forward(x, weight, silu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return *_backward(x, weight, ctx.silu, dy), None


def _forward(x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    y = _correlate(x, weight)
    return F.silu(y, inplace=True) if silu else y


def _backward(x: Tensor, weight: Tensor, silu: bool, dy: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(dy.device.type, enabled=False):
        if silu:  # convolve again rather than keep a second activation through the step
            dy = torch.ops.aten.silu_backward(dy, _correlate(x, weight))
        reach = weight.shape[1] - 1
        dx = _correlate(F.pad(dy, (0, 0, reach, reach)), weight.flip(1))
        return dx, _weight_grad(x, dy, weight)


def _correlate(x: Tensor, weight: Tensor) -> Tensor:
    """y_t = sum_i weight[:, i] * x_{t+i}. As an image of height 1, [N, L, D] is channels-last: no transposed copy."""
    if x.shape[1] < weight.shape[1]:
        return x.new_empty(x.shape[0], 0, x.shape[2])
    image = x.contiguous().unsqueeze(1).permute(0, 3, 1, 2)  # [N, D, 1, L]
    y = F.conv2d(image, weight[:, None, None], groups=weight.shape[0])
    return y.permute(0, 2, 3, 1).squeeze(1).contiguous()


def _weight_grad(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    """sum over t of dy_t * x_{t+i}, in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    grad = weight.new_zeros(weight.shape[1], weight.shape[0], dtype=dtype)
    together = max(1, BLOCK // max(1, dy.shape[1]))  # short sequences share a block
    for xs, dys in zip(x.split(together), dy.split(together), strict=True):
        for start in range(0, dy.shape[1], BLOCK):
            rows = dys[:, start : start + BLOCK].to(dtype)
            seen = xs[:, start : start + rows.shape[1] + len(grad) - 1].to(dtype)
            for i in range(len(grad)):
                grad[i] += (rows * seen[:, i : i + rows.shape[1]]).sum((0, 1))
    return grad.t().to(weight.dtype)


def _blank(x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] - weight.shape[1] + 1, x.shape[2])


def _blank_gradients(x: Tensor, weight: Tensor, silu: bool, dy: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _traced_forward(x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _forward(x, weight, silu)


def _traced_backward(x: Tensor, weight: Tensor, silu: bool, dy: Tensor) -> tuple[Tensor, Tensor]:
    dx, dw = _backward(x, weight, silu, dy)
    return dx, dw.contiguous()


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    x, weight, ctx.silu = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    return *CONV_BACKWARD(*ctx.saved_tensors, ctx.silu, dy), None


# One node each for torch.compile, which would unroll the weight gradient's blocks anew for every length.
CONV = define("causal_conv(Tensor x, Tensor weight, bool silu) -> Tensor", _traced_forward, _blank)
CONV_BACKWARD = define(
    "causal_conv_backward(Tensor x, Tensor weight, bool silu, Tensor dy) -> (Tensor, Tensor)",
    _traced_backward,
    _blank_gradients,
)
torch.library.register_autograd(CONV, _differentiate, setup_context=_save, lib=LIBRARY)
