"""What a model returns."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from .cache import Cache


class Output(NamedTuple):
    """What the model returns.

    logits: [B, T, V] (None when `logits=False`). loss: scalar, mean over targets, auxiliary losses included (None
    without labels). aux_losses: by name, as they enter the loss. cache: the decoding state, if asked for.
    stats: each layer's statistics, {layer index: {name: sum}}. hidden: [B, T, D], what the output head reads.
    layers: if asked for, what enters each block, [B, T, D]. terms: with soft targets the means over the targets of
    `ce`, the labels' negative log likelihood, and of `kl`, without gradients and before their shares.
    """

    logits: Tensor | None
    loss: Tensor | None
    aux_losses: dict[str, Tensor]
    cache: Cache | None
    stats: dict[int, dict[str, Tensor]]
    hidden: Tensor
    layers: tuple[Tensor, ...] = ()
    terms: Mapping[str, Tensor] = MappingProxyType({})
