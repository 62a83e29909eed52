"""Softmax attention: grouped queries (GQA), rotary positions, optional query-key norm, output gate and sliding window.

    q, k, v = x W_qkv;  q, k = rope(norm(q), norm(k));  o_t = sum_{j <= t} softmax_j(q_t k_j / sqrt(D)) v_j;  y = o W_o

or, with a gate, y = (o * sigmoid(x W_gate)) W_o.

Vaswani et al. 2017 (arXiv 1706.03762, eq. 1); GQA: Ainslie et al. 2023 (arXiv 2305.13245).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....kernels.softmax_attention import causal_attention, masked_attention
from ...parts.context import Context
from ...parts.norm import RMSNorm
from ...parts.rope import rotate, rotation
from ...parts.shape import ModelShape
from ..base import Mixed, Mixer
from .options import AttentionConfig
from .state import KVState


class Attention(Mixer):
    """See the module's equation. The state is a KV cache, a ring of `window` slots when there is a window."""

    Config = AttentionConfig
    constant_state = False
    llama_rounding = False
    """Whether RoPE rounds as `HybridLM` says of Llamas."""
    qk_weight: Tensor

    def __init__(self, options: AttentionConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.n_heads, self.n_kv_heads = options.n_heads, options.n_kv_heads
        self.head_dim, self.window = options.head_dim, options.window
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        if options.freeze_qk:
            rows = q if options.tie_qk else q + kv
            self.register_buffer("qk_weight", torch.randn(rows, shape.d_model) / math.sqrt(shape.d_model))
            self.v_proj = nn.Linear(shape.d_model, kv, bias=False)
        else:
            rows = 2 * q if options.gate else q  # each head's q, then its gate, as Qwen3-Next has them
            self.qkv_proj = nn.Linear(shape.d_model, rows + 2 * kv, bias=options.bias != "none")
        self.o_proj = nn.Linear(q, shape.d_model, bias=options.bias == "all")
        if options.qk_norm != "none":
            head = options.qk_norm == "head"
            self.q_norm = RMSNorm(self.head_dim if head else q, shape.norm_eps, shape.zero_centered_norms)
            self.k_norm = RMSNorm(self.head_dim if head else kv, shape.norm_eps, shape.zero_centered_norms)

    def forward(self, x: Tensor, sequences: Context, state: KVState | None = None) -> Mixed:
        q, k, v, gate = self._project(x, sequences)
        if state is None or sequences.fresh:
            dropout = self.options.dropout if self.training else 0.0
            o = causal_attention(q, k, v, sequences=sequences, window=self.window, dropout=dropout)
            if state is not None:
                self._remember(state, sequences, k, v)
        else:
            o = self._continue(state, sequences, q, k, v)
        o = o.flatten(2)
        return Mixed(self.o_proj(o if gate is None else o * gate.sigmoid()))

    def _project(self, x: Tensor, sequences: Context) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x [B, T, D] -> q [B, T, H, head_dim] and k, v [B, T, H_kv, head_dim], normalised and rotated, and the gate
        [B, T, H head_dim] before its sigmoid, if there is one.
        """
        heads = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        q, k, v, gate = self._qkv(x, [n * self.head_dim for n in heads])
        if self.options.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (n, self.head_dim)) for y, n in zip((q, k, v), heads, strict=True))
        if self.options.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.options.rope:
            # Llama's tables have the parameters' dtype: rounded in a bfloat16 model, exact under autocast
            tables = self.o_proj.weight.dtype if self.llama_rounding else torch.float32
            cos, sin = rotation(self.options.rope, self.head_dim, sequences.positions, tables)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v, gate

    def _qkv(self, x: Tensor, widths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x [B, T, D] -> the three projections, heads side by side, and the gate, if there is one."""
        if self.options.freeze_qk:
            qk = F.linear(x, self.qk_weight)
            q, k = (qk, qk) if self.options.tie_qk else qk.split(widths[:2], -1)
            return q, k, self.v_proj(x), None
        if not self.options.gate:
            return *self.qkv_proj(x).split(widths, -1), None
        q_gate, k, v = self.qkv_proj(x).split([2 * widths[0], *widths[1:]], -1)
        q, gate = (y.flatten(2) for y in q_gate.unflatten(-1, (self.n_heads, 2, self.head_dim)).unbind(-2))
        return q, k, v, gate

    def _continue(self, state: KVState, sequences: Context, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from new tokens to remembered and new keys, then remember the new ones."""
        past = torch.tensor(sequences.past, device=q.device)
        remembered = state.slot_positions(past)  # [N, S]
        q, k_new, v_new, new = _rows(sequences, q, k, v)  # [N, T_max, ...] and positions [N, T_max], -1 where empty
        held = state.tensors()
        keys = torch.cat((remembered, new), 1)[:, None]  # [N, 1, S + T_max]
        allowed = (keys >= 0) & (keys <= new[..., None])
        if self.window is not None:
            allowed &= new[..., None] - keys < self.window
        allowed |= (new < 0)[..., None]  # an empty query row sees anything: softmax of nothing is NaN
        o = masked_attention(
            q, torch.cat((held["k"].to(q.dtype), k_new), 1), torch.cat((held["v"].to(q.dtype), v_new), 1), allowed
        )
        self._remember(state, sequences, k, v)
        return o[new >= 0][None] if sequences.packed else o

    def _remember(self, state: KVState, sequences: Context, k: Tensor, v: Tensor) -> None:
        lengths = torch.tensor(sequences.lengths, device=k.device)
        rows = torch.repeat_interleave(torch.arange(len(sequences), device=k.device), lengths)
        positions = sequences.positions.expand(sequences.batch, -1).flatten()
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        if self.window is not None:  # only the last `window` tokens of each sequence still have a slot
            end = lengths + torch.tensor(sequences.past, device=k.device)
            live = positions >= end[rows] - self.window
            rows, positions, k, v = rows[live], positions[live], k[live], v[live]
        state.write(rows, positions, k.detach(), v.detach())

    def new_state(self, n: int, dtype: torch.dtype, device: torch.device) -> KVState:
        k, v = (torch.empty(n, 0, self.n_kv_heads, self.head_dim, dtype=dtype, device=device) for _ in range(2))
        return KVState(k, v, self.window)

    def flops_per_token(self, T: int) -> float:
        frozen = self.options.freeze_qk
        inputs = self.qk_weight.numel() + self.v_proj.weight.numel() if frozen else self.qkv_proj.weight.numel()
        projections = 2 * (inputs + self.o_proj.weight.numel())
        keys = T if self.window is None or self.window >= T else 2 * self.window  # a band is computed in blocks
        return projections + 4 * keys * self.n_heads * self.head_dim

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        slots = T if self.window is None else min(T, self.window)
        return 2 * slots * self.n_kv_heads * self.head_dim * dtype.itemsize


def _rows(sequences: Context, *packed: Tensor) -> tuple[Tensor, ...]:
    """Each [1, sum of lengths, ...] laid out as right-padded rows [N, T_max, ...], and the rows' positions."""
    if not sequences.packed:
        return (*packed, sequences.positions.expand(len(sequences), -1))
    lengths = torch.tensor(sequences.lengths, device=packed[0].device)
    filled = torch.arange(max(sequences.lengths), device=lengths.device) < lengths[:, None]  # [N, T_max]
    rows = []
    for x in packed:
        row = x.new_zeros(*filled.shape, *x.shape[2:])
        row[filled] = x[0]
        rows.append(row)
    positions = sequences.positions.new_full(filled.shape, -1)
    positions[filled] = sequences.positions[0]
    return (*rows, positions)
