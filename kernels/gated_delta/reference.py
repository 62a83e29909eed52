"""The gated delta rule, token by token: the definition every other backend is tested against."""

import torch
from torch import Tensor

from ..shared.sequences import Sequences


def gated_delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None,
    sequences: Sequences,
    chunk_size: int,  # the recurrence has no chunks
    recompute: bool,  # nor anything of its own to keep
) -> tuple[Tensor, Tensor]:
    """S' = exp(g_t) S_{t-1};  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T;  o_t = scale S_t^T q_t.

    Computed in float32, or float64 if v is. Shapes as in `gated_delta_rule`; returns o and every sequence's last state.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    group = v.shape[2] // q.shape[2]
    q, k = (x.to(dtype).repeat_interleave(group, dim=2) for x in (q, k))
    decay = torch.ones_like(beta, dtype=dtype) if g is None else g.to(dtype).exp()
    inputs = [x.flatten(0, 1) for x in (q * scale, k, v.to(dtype), decay, beta.to(dtype))]  # [B*T, HV, ...]
    outputs, states = [], []
    position = 0
    for n, length in enumerate(sequences.lengths):
        state = v.new_zeros(*k.shape[2:], v.shape[-1], dtype=dtype)  # [HV, K, V]
        if initial_state is not None:
            state = initial_state[n].to(dtype)
        for t in range(position, position + length):
            q_t, k_t, v_t, decay_t, beta_t = (x[t] for x in inputs)
            state = state * decay_t[:, None, None]
            error = v_t - torch.einsum("hkv,hk->hv", state, k_t)
            state = state + torch.einsum("hk,hv->hkv", k_t, beta_t[:, None] * error)
            outputs.append(torch.einsum("hkv,hk->hv", state, q_t))
        states.append(state)
        position += length
    o = torch.stack(outputs).view_as(v) if outputs else torch.zeros_like(v)
    return o.to(v.dtype), torch.stack(states)
