"""What mixers with a memory of fixed size have in common: its decoding state, its sizes, and how it is carried on."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import Recurrence, short_conv, short_conv_step
from ..parts.context import Context
from ..parts.shape import ModelShape
from ..parts.state import LayerState
from .base import Mixer
from .options import ChunkedConfig


class RecurrentMixer(Mixer):
    """A mixer that remembers one `memory` [N, *memory_shape], float32 at least, and what its convolution has to.

    A subclass sets `memory_shape`, None for no memory, and `conv` (see `conv_kernel`) if it convolves, and implements
    `forward` by way of `convolve` and `recur`, and `memory_flops`.
    """

    constant_state = True
    memory_shape: tuple[int, ...] | None
    conv: nn.Parameter | None

    def __init__(self, options: Any, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.register_parameter("conv", None)

    def convolve(
        self, x: Tensor, sequences: Context, state: LayerState | None, activation: str | None = "silu"
    ) -> Tensor:
        """silu(conv(x)) over x [B, T, channels], continued from `state["conv"]`, which is updated."""
        assert self.conv is not None
        if state is not None and _decoding(sequences):
            y = short_conv_step(x.flatten(0, 1), self.conv, state=state["conv"], activation=activation)
            return y.view_as(x)
        past = None if state is None else state["conv"].to(x.dtype)  # autocast may have changed it
        y, last = short_conv(
            x,
            self.conv,
            activation=activation,
            initial_state=past,
            output_final_state=state is not None,
            sequences=sequences,
        )
        if state is not None and last is not None:
            state.update(conv=last.detach().to(state["conv"].dtype, copy=True))  # no view that keeps all of x alive
        return y

    def recur(
        self,
        operator: Recurrence,
        inputs: tuple[Tensor | None, ...],
        sequences: Context,
        state: LayerState | None,
    ) -> Tensor:
        """The operator's output [B, T, ...] for inputs [B, T, ...], continued from `state["memory"]`, which is updated.

        While decoding, `operator.step` does the same for one token of each sequence, in place.
        """
        memory = None if state is None else state["memory"]
        if memory is not None and _decoding(sequences):
            rows = (None if x is None else x.flatten(0, 1) for x in inputs)  # [N, ...]
            return operator.step(*rows, state=memory).unsqueeze(0 if sequences.packed else 1)
        run = operator
        if isinstance(self.options, ChunkedConfig):
            run = partial(operator, chunk_size=self.options.chunk_size, recompute=self.options.recompute)
        o, last = run(*inputs, initial_state=memory, output_final_state=state is not None, sequences=sequences)
        if state is not None and last is not None:
            state.update(memory=last.detach().contiguous())
        return o

    def new_state(self, n: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        exact = torch.promote_types(dtype, torch.float32)
        tensors = {}
        if self.memory_shape is not None:
            tensors["memory"] = torch.zeros(n, *self.memory_shape, dtype=exact, device=device)
        if self.conv is not None:
            channels, width = self.conv.shape
            tensors["conv"] = torch.zeros(n, width - 1, channels, dtype=dtype, device=device)
        return LayerState(**tensors)

    def memory_flops(self) -> float:
        """Forward matmul FLOPs per token of the recurrence itself."""
        raise NotImplementedError

    def flops_per_token(self, T: int) -> float:
        weights = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        return 2 * (weights + (0 if self.conv is None else self.conv.numel())) + self.memory_flops()

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        memory = 0 if self.memory_shape is None else math.prod(self.memory_shape) * max(dtype.itemsize, 4)
        if self.conv is None:
            return memory
        channels, width = self.conv.shape
        return memory + (width - 1) * channels * dtype.itemsize


def _decoding(sequences: Context) -> bool:
    """Whether each sequence has one token and nobody asks for gradients: states may be updated in place."""
    return sequences.single and not torch.is_grad_enabled()


def conv_kernel(channels: int, width: int) -> nn.Parameter:
    """A depthwise kernel [channels, width] with PyTorch's own initialisation of nn.Conv1d."""
    return nn.Parameter(torch.empty(channels, width).uniform_(-1, 1) / math.sqrt(width))
