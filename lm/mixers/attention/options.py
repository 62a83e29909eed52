"""Options of attention."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field

from ...parts.ranges import LONGEST
from ...parts.rope_config import RopeConfig
from ...parts.shape import ModelShape
from ..options import FROM_MODEL, MixerConfig, Size, SizeOfPairs, head_sizes
from .head_options import HeadsConfig
from .mask_options import MaskConfig


class AttentionConfig(MixerConfig):
    """Heads default to width 64 (a quarter of d_model below 256); `rope: null` leaves positions out."""

    section: ClassVar[str] = "attention"
    """Its name in recipes."""
    n_heads: Size = FROM_MODEL
    n_kv_heads: Size = FROM_MODEL
    head_dim: SizeOfPairs = FROM_MODEL
    qk_norm: Literal["none", "head", "full"] = "none"
    """RMSNorm on q and k before RoPE: per head (Qwen3) or over all heads together (OLMo 2)."""
    bias: Literal["none", "qkv", "all"] = "none"
    """Biases on the projections to q, k and v (Qwen 2), and on the output projection too."""
    gate: bool = False
    """Each channel of the output times sigmoid(x W_gate), before W_o (Qiu et al. 2025, arXiv 2505.06708)."""
    window: int | None = Field(default=None, gt=0, le=LONGEST)
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
    heads: HeadsConfig | None = None
    """Which heads a token uses; null: all."""
    mask: MaskConfig | None = None
    """A sink beside the window, which then stands in here; null: `window` alone."""

    def in_model(self, index: int, layers: Sequence[MixerConfig]) -> Self:
        if self.heads is None:
            return self
        routed = [other for other in layers if isinstance(other, AttentionConfig) and other.heads is not None]
        peers = [i for i, other in enumerate(layers) if other is self or self._alike(other)]
        heads = self.heads.in_model(peers.index(index), len(peers), len(routed), self.section)
        return self.model_copy(update={"heads": heads})

    def _alike(self, other: MixerConfig) -> bool:
        return type(other) is type(self) and getattr(other, "heads", None) == self.heads

    def resolve(self, shape: ModelShape) -> Self:
        name = self.section
        head_dim, n_heads = head_sizes(shape.d_model, self.head_dim, self.n_heads)
        n_kv_heads = self.n_kv_heads or n_heads
        if n_heads % n_kv_heads:
            raise ValueError(f"{name}.n_kv_heads: {n_kv_heads} does not divide n_heads={n_heads}; use a divisor")
        if self.freeze_qk and self.qk_norm != "none":
            raise ValueError(f"{name}.qk_norm: the gains of {self.qk_norm!r} would train; use none with freeze_qk")
        if self.freeze_qk and self.bias != "none":
            raise ValueError(f"{name}.bias: {self.bias!r} would train biases of q and k; use none with freeze_qk")
        if self.freeze_qk and self.gate:
            raise ValueError(f"{name}.gate: is one matrix with the projections to q and k; use false with freeze_qk")
        if self.tie_qk and not (self.freeze_qk and n_kv_heads == n_heads):
            raise ValueError(
                f"{name}.tie_qk: needs freeze_qk and as many key heads as query heads, got "
                f"freeze_qk={self.freeze_qk}, n_heads={n_heads}, n_kv_heads={n_kv_heads}"
            )
        if self.mask is not None and self.window is not None:
            raise ValueError(f"{name}.window: {self.window} beside a mask, which has its own; use {name}.mask.window")
        mask = None if self.mask is None else self.mask.resolve(shape.context)
        heads = None if self.heads is None else self._heads(self.heads, n_heads, n_kv_heads)
        if self.rope and self.rope.fraction == 1 and head_dim % 2:
            raise ValueError(f"{name}.head_dim: {head_dim} is odd, RoPE rotates pairs; use an even one or rope: null")
        if self.rope and (not (turning := self.rope.width(head_dim)) or turning % 2):
            raise ValueError(
                f"{name}.rope.fraction: {self.rope.fraction} of head_dim={head_dim} turns {turning} channels, RoPE "
                "rotates pairs; use a fraction that makes it even and at least 2"
            )
        sizes = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
        return self.model_copy(update={**sizes, "heads": heads, "mask": mask})

    def _heads(self, heads: HeadsConfig, n_heads: int, n_kv_heads: int) -> HeadsConfig:
        if self.dropout:
            raise ValueError(
                f"{self.section}.dropout: {self.dropout} of the attention weights, which routed heads do not form; "
                "use 0 or heads: null"
            )
        if self.freeze_qk and heads.router == "query_norm":
            raise ValueError(
                f"{self.section}.heads.router: 'query_norm' routes by queries that freeze_qk never trains; use moh, or "
                "freeze_qk: false"
            )
        return heads.resolve(n_heads, n_kv_heads, self.section)
