"""The mixer protocol: what a decoder block, the cache and the training loop may ask of any token mixer."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ..model.cache import LayerState
from ..model.sequences import Sequences
from ..strict import Strict

if TYPE_CHECKING:
    from ..config import BaseModelConfig


class MixerConfig(Strict):
    """Options every mixer has. Options that are None are sized from the model by `resolve`."""

    norm: Literal["pre", "post"] = "pre"
    """`pre`: x + mixer(norm(x)); `post`: x + norm(mixer(x)), for the mixer and the FFN of this layer."""
    ffn_hidden: int | None = Field(default=None, gt=0)
    """Hidden width of this layer's FFN; None: that of the model's `ffn` section."""

    def resolve(self, model: "BaseModelConfig") -> Self:
        """A copy in which nothing is None that the mixer needs. Raises ValueError when the sizes contradict."""
        return self.model_copy()


class Mixed(NamedTuple):
    """What a mixer returns.

    y: [B, T, D]. losses: auxiliary losses by name, already weighted, each a mean over this call's tokens.
    stats: detached sums over this call's tokens; the loop adds them over micro-batches and processes and hands the
    totals to `on_step` once per optimizer step, so that activation checkpointing never counts a token twice.
    """

    y: Tensor
    losses: Mapping[str, Tensor] = MappingProxyType({})
    stats: Mapping[str, Tensor] = MappingProxyType({})


class Float32Module(nn.Module):
    """A module some of whose parameters need more digits than the rest of the model."""

    float32_parameters: ClassVar[tuple[str, ...]] = ()
    """Own parameters that stay float32 whatever dtype the model is cast to, and take no weight decay."""

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        kept = {name: self._parameters[name] for name in self.float32_parameters}
        data = {name: p.data for name, p in kept.items() if p is not None}
        super()._apply(fn, recurse)
        for name, old in data.items():
            parameter = self._parameters[name]
            if parameter is not None and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = old.to(parameter.device, torch.float32)  # undo the cast, keep the move
        return self


class Mixer(Float32Module):
    """Base class of token mixers: sequences in, sequences out, strictly causal within each sequence.

    A subclass sets `Config`, `constant_state` and `float32_parameters`, names an output projection `o_proj`, and
    implements `forward`, `new_state`, `flops_per_token` and `state_bytes`; `shared` if its layers share parameters.
    """

    Config: ClassVar[type[MixerConfig]] = MixerConfig
    constant_state: ClassVar[bool]
    """Whether the decoding state stops growing with the sequence."""
    o_proj: nn.Linear

    def __init__(self, options: Any, model: "BaseModelConfig", index: int):
        super().__init__()
        self.options = options
        self.index = index

    @classmethod
    def shared(cls, layers: list[Any], model: "BaseModelConfig") -> nn.Module | None:
        """What all layers of this mixer in a model have in common, or None; `layers` are these layers' options.

        The model calls the module once per forward and hands element `index` of its result, one for every layer of the
        stack, to each of these layers' forward as a last argument: parameters are used where they are owned alone.
        """
        return None

    def forward(self, x: Tensor, sequences: Sequences, state: LayerState | None = None) -> Mixed:
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

    def on_step(self, stats: dict[str, Tensor]) -> dict[str, float]:
        """Called once per optimizer step with the summed `stats`: update buffers, return telemetry to log by name."""
        return {}
