"""The gated scan, token by token: the definition every other backend is tested against."""

import torch
from torch import Tensor

from ..shared.checks import state_dtype
from ..shared.sequences import Sequences


def gated_scan_reference(
    x: Tensor, g: Tensor, *, initial_state: Tensor | None, sequences: Sequences
) -> tuple[Tensor, Tensor]:
    """h_t = exp(g_t) h_{t-1} + x_t.

    Computed in float32, or float64 if x is. Shapes as in `gated_scan`; returns h and every sequence's last state.
    """
    dtype = state_dtype(x.dtype)
    decays, inputs = g.to(dtype).exp().flatten(0, 1), x.to(dtype).flatten(0, 1)  # [B*T, ...]
    outputs, states = [], []
    position = 0
    for n, length in enumerate(sequences.lengths):
        state = x.new_zeros(x.shape[2:], dtype=dtype) if initial_state is None else initial_state[n]
        for t in range(position, position + length):
            state = decays[t] * state + inputs[t]
            outputs.append(state)
        states.append(state)
        position += length
    return torch.stack(outputs).view_as(x).to(x.dtype), torch.stack(states)
