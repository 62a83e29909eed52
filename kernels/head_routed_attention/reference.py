"""Head-routed attention, every head computed and the inactive ones masked: what other backends are tested against."""

from torch import Tensor

from ..shared import band_reference
from .arguments import RoutedArguments, RoutedStepArguments


def run(arguments: RoutedArguments) -> Tensor:
    """gate_ti sum_j softmax_j(q_ti k_j / sqrt(D)) v_j over the keys that query t of head i sees.

    Computed in float32, or float64 if q is.
    """
    q, k, v, gate, sink, window, sequences = arguments
    return _gated(band_reference.attention(q, k, v, sink, window, sequences), gate).to(q.dtype)


def step(arguments: RoutedStepArguments) -> Tensor:
    """One query of each sequence over its keys."""
    q, k, v, gate, seen = arguments
    return _gated(band_reference.attention_step(q, k, v, seen), gate).to(q.dtype)


def _gated(o: Tensor, gate: Tensor) -> Tensor:
    """o [..., H, D] times gate [..., H]; of an inactive head nothing is left, no gradient either."""
    return o.masked_fill((gate == 0)[..., None], 0) * gate.to(o.dtype)[..., None]
