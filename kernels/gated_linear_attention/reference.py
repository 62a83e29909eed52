"""Gated linear attention, token by token: the definition every other backend is tested against."""

import torch
from torch import Tensor

from ..shared.checks import state_dtype
from ..shared.sequences import Sequences


def gated_linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None,
    sequences: Sequences,
    chunk_size: int,  # the recurrence has no chunks
    recompute: bool,  # nor anything of its own to keep
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp g_t) S_{t-1} + k_t v_t^T;  o_t = scale S_t^T q_t.

    Computed in float32, or float64 if v is. Shapes as in `gated_linear_attention`; returns o and every sequence's last
    state.
    """
    dtype = state_dtype(v.dtype)
    g = torch.zeros_like(k[..., 0]) if g is None else g
    decay = (g if g.ndim == 4 else g.unsqueeze(-1)).to(dtype).exp()  # [B, T, H, K or 1]
    inputs = [x.flatten(0, 1) for x in (q.to(dtype) * scale, k.to(dtype), v.to(dtype), decay)]  # [B*T, H, ...]
    outputs, states = [], []
    position = 0
    for n, length in enumerate(sequences.lengths):
        state = v.new_zeros(*k.shape[2:], v.shape[-1], dtype=dtype)  # [H, K, V]
        if initial_state is not None:
            state = initial_state[n]
        for t in range(position, position + length):
            q_t, k_t, v_t, decay_t = (x[t] for x in inputs)
            state = decay_t.unsqueeze(-1) * state + torch.einsum("hk,hv->hkv", k_t, v_t)
            outputs.append(torch.einsum("hkv,hk->hv", state, q_t))
        states.append(state)
        position += length
    return torch.stack(outputs).view_as(v).to(v.dtype), torch.stack(states)
