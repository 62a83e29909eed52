"""Banded attention with the whole matrix of scores, masked: what other backends are tested against."""

from torch import Tensor

from ..shared import band_reference
from .arguments import BandedArguments, BandedStepArguments


def run(arguments: BandedArguments) -> Tensor:
    """Softmax over the keys that a query sees, in float32, or float64 if q is."""
    return band_reference.attention(*arguments).to(arguments.q.dtype)


def step(arguments: BandedStepArguments) -> Tensor:
    """One query of each sequence over its keys."""
    return band_reference.attention_step(*arguments).to(arguments.q.dtype)
