"""One decoder layer: a token mixer and, unless it is left out, a feed-forward, each with a norm and a residual."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..mixers import MIXERS, Mixed
from ..parts.context import Context
from ..parts.ffn import SwiGLU
from ..parts.norm import RMSNorm
from ..parts.state import LayerState
from ..recipe.layers import LayerSpec

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig


class Block(nn.Module):
    """x += mixer(norm(x)); x += ffn(norm(x)), or with the norms after mixer and FFN when the layer's `norm` is post."""

    def __init__(self, spec: LayerSpec, model: "BaseModelConfig", index: int):
        super().__init__()
        self.kind = spec.mixer
        self.post_norm = spec.options.norm == "post"
        self.mixer_norm = RMSNorm(model.d_model, model.norm_eps, model.zero_centered_norms)
        self.mixer = MIXERS[spec.mixer](spec.options, model.shape, index)
        self.ffn: SwiGLU | None = None
        if model.ffn is not None:
            self.ffn_norm = RMSNorm(model.d_model, model.norm_eps, model.zero_centered_norms)
            self.ffn = SwiGLU(model.d_model, spec.options.ffn_hidden, model.ffn.bias)

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None, *shared: Tensor) -> Mixed:
        """x [B, T, D] -> the layer's output in `Mixed.y`, the mixer's losses and statistics passed on.

        shared: this layer's part of what its kind of mixer shares, if it does; see `Mixer.shared`.
        """
        self.mixer.check_precision()
        mixed = self.mixer(x if self.post_norm else self.mixer_norm(x), sequences, state, *shared)
        x = x + (self.mixer_norm(mixed.y) if self.post_norm else mixed.y)
        if self.ffn is None:
            return mixed._replace(y=x)
        y = self.ffn_norm(self.ffn(x)) if self.post_norm else self.ffn(self.ffn_norm(x))
        return mixed._replace(y=x + y)

    def flops_per_token(self, T: int) -> float:
        """Forward matmul FLOPs per token in a sequence of T tokens."""
        return self.mixer.flops_per_token(T) + (self.ffn.flops_per_token() if self.ffn else 0)
