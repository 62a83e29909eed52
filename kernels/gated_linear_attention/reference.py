"""Gated linear attention, token by token: the definition every other backend is tested against."""

import torch
from torch import Tensor

from ..shared.checks import state_dtype
from .arguments import LinearArguments, LinearStepArguments


def run(x: LinearArguments) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp g_t) S_{t-1} + k_t v_t^T;  o_t = scale S_t^T q_t.

    Computed in float32, or float64 if v is. Returns o and every sequence's last state.
    """
    k, v, dtype = x.k, x.v, state_dtype(x.v.dtype)
    g = torch.zeros_like(k[..., 0]) if x.g is None else x.g
    decay = (g if g.ndim == 4 else g.unsqueeze(-1)).to(dtype).exp()  # [B, T, H, K or 1]
    inputs = [a.flatten(0, 1) for a in (x.q.to(dtype) * x.scale, k.to(dtype), v.to(dtype), decay)]  # [B*T, H, ...]
    outputs, states = [], []
    position = 0
    for n, length in enumerate(x.sequences.lengths):
        state = v.new_zeros(*k.shape[2:], v.shape[-1], dtype=dtype)  # [H, K, V]
        if x.initial_state is not None:
            state = x.initial_state[n]
        for t in range(position, position + length):
            q_t, k_t, v_t, decay_t = (a[t] for a in inputs)
            state = decay_t.unsqueeze(-1) * state + torch.einsum("hk,hv->hkv", k_t, v_t)
            outputs.append(torch.einsum("hkv,hk->hv", state, q_t))
        states.append(state)
        position += length
    return torch.stack(outputs).view_as(v).to(v.dtype), torch.stack(states)


def step(x: LinearStepArguments) -> Tensor:
    """One token of each sequence: updates x.state in place, returns o [N, H, V]."""
    dtype, state = state_dtype(x.v.dtype), x.state
    if x.g is not None:
        state *= (x.g if x.g.ndim == 3 else x.g.unsqueeze(-1)).to(dtype).exp().unsqueeze(-1)
    state += torch.einsum("nhk,nhv->nhkv", x.k.to(dtype), x.v.to(dtype))
    return torch.einsum("nhkv,nhk->nhv", state, x.scale * x.q.to(dtype)).to(x.v.dtype)
