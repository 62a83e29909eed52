"""The mixer protocol: what a decoder block, the cache and the training loop may ask of any token mixer."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..parts.context import Context
from ..parts.float32 import Float32Module
from ..parts.shape import ModelShape
from ..parts.state import LayerState
from .options import MixerConfig


class Mixed(NamedTuple):
    """What a mixer returns.

    y: [B, T, D]. losses: auxiliary losses by name, already weighted, each a mean over this call's tokens.
    stats: detached sums over this call's tokens; the loop adds them over micro-batches and processes and hands the
    totals to `on_step` once per optimizer step, so that activation checkpointing never counts a token twice.
    """

    y: Tensor
    losses: Mapping[str, Tensor] = MappingProxyType({})
    stats: Mapping[str, Tensor] = MappingProxyType({})


class Mixer(Float32Module):
    """Base class of token mixers: sequences in, sequences out, strictly causal within each sequence.

    A subclass sets `Config`, `constant_state` and `float32_parameters`, names an output projection `o_proj`, and
    implements `forward`, `new_state`, `flops_per_token` and `state_bytes`; `shared` if its layers share parameters.
    """

    Config: ClassVar[type[MixerConfig]] = MixerConfig
    constant_state: ClassVar[bool]
    """Whether the decoding state stops growing with the sequence."""
    o_proj: nn.Linear

    def __init__(self, options: Any, shape: ModelShape, index: int):
        super().__init__()
        self.options = options
        self.index = index

    @classmethod
    def shared(cls, layers: list[Any], shape: ModelShape) -> nn.Module | None:
        """What all layers of this mixer in a model have in common, or None; `layers` are these layers' options.

        The model calls the module once per forward and hands element `index` of its result, one for every layer of the
        stack, to each of these layers' forward as a last argument: parameters are used where they are owned alone.
        """
        return None

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        """Mix x [B, T, D] within each of `sequences`; with a `state`, continue from it and update it in place."""
        raise NotImplementedError

    def new_state(self, n: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        """An empty decoding state for `n` sequences; `dtype` is that of the activations."""
        raise NotImplementedError

    def flops_per_token(self, T: int) -> float:
        """Forward matmul FLOPs per token (a multiply-add is 2), averaged over a sequence of T tokens."""
        raise NotImplementedError

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the decoding state of one sequence after T tokens; `dtype` is that of the activations."""
        raise NotImplementedError

    def before_step(self, done: float) -> None:
        """Told what share of the training steps is done, in [0, 1]: before each step's forwards, before each
        measurement in the loop, and so also when a run goes on. For what changes over training, such as a budget.

        What follows from it depends on `done` alone: a resumed run is then as one that was never stopped. A model that
        is loaded elsewhere is told nothing: it computes as if `done` were 1.
        """

    def on_step(self, stats: dict[str, Tensor]) -> dict[str, float | list[float]]:
        """Called once per optimizer step with the summed `stats`: update buffers, return telemetry to log by name.

        A list, one number per head, is logged where the step has a line on the console.
        """
        return {}
