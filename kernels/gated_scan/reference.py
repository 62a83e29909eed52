"""The gated scan, token by token: the definition every other backend is tested against."""

import torch
from torch import Tensor

from ..shared.checks import state_dtype
from .arguments import ScanArguments, ScanStepArguments


def run(arguments: ScanArguments) -> tuple[Tensor, Tensor]:
    """h_t = exp(g_t) h_{t-1} + x_t.

    Computed in float32, or float64 if x is. Returns h and every sequence's last state.
    """
    x, g, initial_state, sequences = arguments
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


def step(arguments: ScanStepArguments) -> Tensor:
    """One token of each sequence: updates the state in place, returns h [N, ...]."""
    x, g, state = arguments
    state *= g.to(state_dtype(x.dtype)).exp()
    state += x
    return state.to(x.dtype, copy=True)
