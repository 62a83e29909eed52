"""The gated delta rule, token by token: the definition every other backend is tested against."""

import torch
from torch import Tensor

from ..shared.checks import state_dtype
from .arguments import DeltaArguments, DeltaStepArguments


def run(x: DeltaArguments) -> tuple[Tensor, Tensor]:
    """S' = exp(g_t) S_{t-1};  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T;  o_t = scale S_t^T q_t.

    Computed in float32, or float64 if v is. Returns o and every sequence's last state.
    """
    v, dtype = x.v, state_dtype(x.v.dtype)
    group = v.shape[2] // x.q.shape[2]
    q, k = (a.to(dtype).repeat_interleave(group, dim=2) for a in (x.q, x.k))
    decay = torch.ones_like(x.beta, dtype=dtype) if x.g is None else x.g.to(dtype).exp()
    inputs = [a.flatten(0, 1) for a in (q * x.scale, k, v.to(dtype), decay, x.beta.to(dtype))]  # [B*T, HV, ...]
    outputs, states = [], []
    position = 0
    for n, length in enumerate(x.sequences.lengths):
        state = v.new_zeros(*k.shape[2:], v.shape[-1], dtype=dtype)  # [HV, K, V]
        if x.initial_state is not None:
            state = x.initial_state[n].to(dtype)
        for t in range(position, position + length):
            q_t, k_t, v_t, decay_t, beta_t = (a[t] for a in inputs)
            state = state * decay_t[:, None, None]
            error = v_t - torch.einsum("hkv,hk->hv", state, k_t)
            state = state + torch.einsum("hk,hv->hkv", k_t, beta_t[:, None] * error)
            outputs.append(torch.einsum("hkv,hk->hv", state, q_t))
        states.append(state)
        position += length
    return torch.stack(outputs).view_as(v).to(v.dtype), torch.stack(states)


def step(x: DeltaStepArguments) -> Tensor:
    """One token of each sequence: updates x.state in place, returns o [N, HV, V]."""
    dtype, state = state_dtype(x.v.dtype), x.state
    group = x.v.shape[1] // x.q.shape[1]
    q, k = (a.to(dtype).repeat_interleave(group, dim=1) for a in (x.q, x.k))
    if x.g is not None:
        state *= x.g.to(dtype).exp()[..., None, None]
    error = x.v.to(dtype) - torch.einsum("nhkv,nhk->nhv", state, k)
    state += torch.einsum("nhk,nhv->nhkv", k, x.beta.to(dtype)[..., None] * error)
    return torch.einsum("nhkv,nhk->nhv", state, x.scale * q).to(x.v.dtype)
