"""Softmax attention: grouped queries (GQA), rotary positions, optional query-key norm, output gate and sliding window,
all heads or those that a router chooses for a token.

    q, k, v = x W_qkv;  q, k = rope(norm(q), norm(k));  o_t = sum_{j <= t} softmax_j(q_t k_j / sqrt(D)) v_j;  y = o W_o

or, with a gate, y = (o * sigmoid(x W_gate)) W_o.

Vaswani et al. 2017 (arXiv 1706.03762, eq. 1); GQA: Ainslie et al. 2023 (arXiv 2305.13245).
"""

import torch
from torch import Tensor, nn

from ...parts.context import Context
from ...parts.norm import RMSNorm
from ...parts.rope import rotate, tables
from ...parts.shape import ModelShape
from ..base import Mixed, Mixer
from .heads import heads_of
from .options import AttentionConfig
from .projection import Projected, projection_of
from .state import KVState
from .visible import visible_of


class Attention(Mixer):
    """See the module's equation: a `Projection` of x, what is `visible` of it, which `Heads` look, and the state that
    this remembers."""

    Config = AttentionConfig
    constant_state = False
    llama_rounding = False
    """Whether RoPE rounds as `HybridLM` says of Llamas."""

    def __init__(self, options: AttentionConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.n_heads, self.n_kv_heads, self.head_dim = options.n_heads, options.n_kv_heads, options.head_dim
        self.projection, self.visible = projection_of(options), visible_of(options)
        self.heads = heads_of(options)
        self.projection.build(self, options, shape.d_model)
        self.heads.build(self, shape.d_model)
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.o_proj = nn.Linear(q, shape.d_model, bias=options.bias == "all")
        if options.qk_norm != "none":
            head = options.qk_norm == "head"
            self.q_norm = RMSNorm(self.head_dim if head else q, shape.norm_eps, shape.zero_centered_norms)
            self.k_norm = RMSNorm(self.head_dim if head else kv, shape.norm_eps, shape.zero_centered_norms)

    def forward(self, x: Tensor, sequences: Context, state: KVState | None = None) -> Mixed:
        projected = self.projection(self, x)
        routed = self.heads(self, x, projected.q, sequences)
        q, k, v = self._placed(projected, sequences)
        if state is None or sequences.fresh:
            dropout = self.options.dropout if self.training else 0.0
            o = self.visible.attend(q, k, v, routed.gate, sequences, dropout)
            if state is not None:
                self.visible.remember(state, k.detach(), v.detach(), sequences)
        else:
            o = self.visible.continued(state, q, k, v, routed.gate, sequences)
        o, gate = o.flatten(2), projected.gate
        return Mixed(self.o_proj(o if gate is None else o * gate.sigmoid()), routed.losses, routed.stats)

    def _placed(self, projected: Projected, sequences: Context) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, H, head_dim] and k, v [B, T, H_kv, head_dim], normalised and rotated."""
        q, k, v, _ = projected
        if self.options.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        heads = (self.n_heads, self.n_kv_heads, self.n_kv_heads)  # by number: a call may have no token
        q, k, v = (y.view(*y.shape[:2], n, self.head_dim) for y, n in zip((q, k, v), heads, strict=True))
        if self.options.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.options.rope:
            # Llama's tables have the model's dtype: rounded in a bfloat16 model, exact under autocast
            rounded = self.llama_rounding and not torch.is_autocast_enabled(v.device.type)
            dtype = v.dtype if rounded else torch.float32
            cos, sin = tables(self.options.rope, self.head_dim, sequences, dtype)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v

    def new_state(self, n: int, dtype: torch.dtype, device: torch.device) -> KVState:
        return KVState.empty(n, self.n_kv_heads, self.head_dim, self.visible.most_slots, dtype, device)

    def flops_per_token(self, T: int) -> float:
        projections = self.projection.entries(self) + self.heads.entries(self) + self.o_proj.weight.numel()
        return 2 * projections + 4 * self.visible.keys(T) * self.heads.active * self.head_dim

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        return 2 * self.visible.slots(T) * self.n_kv_heads * self.head_dim * dtype.itemsize

    def on_step(self, stats: dict[str, Tensor]) -> dict[str, float | list[float]]:
        return self.heads.telemetry(stats)

    def before_step(self, done: float) -> None:
        self.heads.before_step(done)
