"""Softmax attention: grouped queries (GQA), rotary positions, optional query-key norm, output gate and sliding window.

    q, k, v = x W_qkv;  q, k = rope(norm(q), norm(k));  o_t = sum_{j <= t} softmax_j(q_t k_j / sqrt(D)) v_j;  y = o W_o

or, with a gate, y = (o * sigmoid(x W_gate)) W_o.

Vaswani et al. 2017 (arXiv 1706.03762, eq. 1); GQA: Ainslie et al. 2023 (arXiv 2305.13245).
"""

import math
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...kernels.softmax_attention import causal_attention, masked_attention
from ..model.cache import KVState
from ..model.norm import RMSNorm
from ..model.rope import RopeConfig, rotate, rotation
from ..model.sequences import Sequences
from .base import Mixed, Mixer, MixerConfig
from .sizes import head_sizes

if TYPE_CHECKING:
    from ..config import BaseModelConfig


class AttentionConfig(MixerConfig):
    """Heads default to width 64 (a quarter of d_model below 256); `rope: null` leaves positions out."""

    n_heads: int | None = Field(default=None, gt=0)
    n_kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=1)
    qk_norm: Literal["none", "head", "full"] = "none"
    """RMSNorm on q and k before RoPE: per head (Qwen3) or over all heads together (OLMo 2)."""
    bias: Literal["none", "qkv", "all"] = "none"
    """Biases on the projections to q, k and v (Qwen 2), and on the output projection too."""
    gate: bool = False
    """Each channel of the output times sigmoid(x W_gate), before W_o (Qiu et al. 2025, arXiv 2505.06708)."""
    window: int | None = Field(default=None, gt=0)
    """Keys a query sees, itself included; None: all."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the attention weights dropped in training."""
    freeze_qk: bool = False
    """Queries and keys are fixed random projections, buffers rather than parameters: nothing trains, decays or counts
    them. Their entries have variance 1 / d_model, so that scores vary by 1 and not, as at a small initialisation, by
    nothing (Fu et al. 2023, arXiv 2307.11353)."""
    tie_qk: bool = False
    """With freeze_qk: one projection for both, which makes the mean of W_q W_k^T a multiple of the identity."""
    rope: RopeConfig | None = RopeConfig()

    def resolve(self, model: "BaseModelConfig") -> Self:
        head_dim, n_heads = head_sizes(model.d_model, self.head_dim, self.n_heads)
        n_kv_heads = self.n_kv_heads or n_heads
        if n_heads % n_kv_heads:
            raise ValueError(f"attention.n_kv_heads: {n_kv_heads} does not divide n_heads={n_heads}; use a divisor")
        if self.freeze_qk and self.qk_norm != "none":
            raise ValueError(f"attention.qk_norm: the gains of {self.qk_norm!r} would train; use none with freeze_qk")
        if self.freeze_qk and self.bias != "none":
            raise ValueError(f"attention.bias: {self.bias!r} would train biases of q and k; use none with freeze_qk")
        if self.freeze_qk and self.gate:
            raise ValueError("attention.gate: is one matrix with the projections to q and k; use false with freeze_qk")
        if self.tie_qk and not (self.freeze_qk and n_kv_heads == n_heads):
            raise ValueError(
                "attention.tie_qk: needs freeze_qk and as many key heads as query heads, got "
                f"freeze_qk={self.freeze_qk}, n_heads={n_heads}, n_kv_heads={n_kv_heads}"
            )
        if self.rope and self.rope.fraction == 1 and head_dim % 2:
            raise ValueError(
                f"attention.head_dim: {head_dim} is odd, RoPE rotates pairs; use an even one or rope: null"
            )
        if self.rope and (not (turning := self.rope.width(head_dim)) or turning % 2):
            raise ValueError(
                f"attention.rope.fraction: {self.rope.fraction} of head_dim={head_dim} turns {turning} channels, RoPE "
                "rotates pairs; use a fraction that makes it even and at least 2"
            )
        return self.model_copy(update={"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim})


class Attention(Mixer):
    """See the module's equation. The state is a KV cache, a ring of `window` slots when there is a window."""

    Config = AttentionConfig
    constant_state = False
    llama_rounding = False
    """Whether RoPE rounds as `HybridLM` says of Llamas."""
    qk_weight: Tensor

    def __init__(self, options: AttentionConfig, model: "BaseModelConfig", index: int):
        super().__init__(options, model, index)
        self.n_heads, self.n_kv_heads = options.n_heads or 0, options.n_kv_heads or 0
        self.head_dim, self.window = options.head_dim or 0, options.window
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        if options.freeze_qk:
            rows = q if options.tie_qk else q + kv
            self.register_buffer("qk_weight", torch.randn(rows, model.d_model) / math.sqrt(model.d_model))
            self.v_proj = nn.Linear(model.d_model, kv, bias=False)
        else:
            rows = 2 * q if options.gate else q  # each head's q, then its gate, as Qwen3-Next has them
            self.qkv_proj = nn.Linear(model.d_model, rows + 2 * kv, bias=options.bias != "none")
        self.o_proj = nn.Linear(q, model.d_model, bias=options.bias == "all")
        if options.qk_norm != "none":
            head = options.qk_norm == "head"
            self.q_norm = RMSNorm(self.head_dim if head else q, model.norm_eps, model.zero_centered_norms)
            self.k_norm = RMSNorm(self.head_dim if head else kv, model.norm_eps, model.zero_centered_norms)

    def forward(self, x: Tensor, sequences: Sequences, state: KVState | None = None) -> Mixed:
        q, k, v, gate = self._project(x, sequences)
        if state is None or sequences.fresh:
            lengths = sequences.lengths if sequences.packed else None
            dropout = self.options.dropout if self.training else 0.0
            o = causal_attention(q, k, v, window=self.window, lengths=lengths, dropout=dropout)
            if state is not None:
                self._remember(state, sequences, k, v)
        else:
            o = self._continue(state, sequences, q, k, v)
        o = o.flatten(2)
        return Mixed(self.o_proj(o if gate is None else o * gate.sigmoid()))

    def _project(self, x: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
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

    def _continue(self, state: KVState, sequences: Sequences, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
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

    def _remember(self, state: KVState, sequences: Sequences, k: Tensor, v: Tensor) -> None:
        lengths = torch.tensor(sequences.lengths, device=k.device)
        rows = torch.repeat_interleave(torch.arange(len(sequences), device=k.device), lengths)
        positions, k, v = sequences.positions.flatten(), k.flatten(0, 1), v.flatten(0, 1)
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


def _rows(sequences: Sequences, *packed: Tensor) -> tuple[Tensor, ...]:
    """Each [1, sum of lengths, ...] laid out as right-padded rows [N, T_max, ...], and the rows' positions."""
    if not sequences.packed:
        return (*packed, sequences.positions)
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
