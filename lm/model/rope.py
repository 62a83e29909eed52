"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) with the context-extension rules in use."""

import math
from typing import Literal

import torch
from torch import Tensor

from ..strict import Strict


class RopeConfig(Strict):
    """theta_i = theta^(-2i/d). `linear` divides all frequencies by `factor`, `llama3` only the slow ones."""

    theta: float = 10000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Angles per token [head_dim / 2], float32."""
    freq = 1.0 / config.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if config.scaling == "none":
        return freq
    if config.scaling == "linear":
        return freq / config.factor
    # llama3: wavelengths beyond original_context / low_freq_factor are stretched, short ones kept, a ramp between
    turns = config.original_context * freq / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return freq * keep + freq / config.factor * (1 - keep)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves (x1, x2) of each head: (x1 cos - x2 sin, x2 cos + x1 sin).

    x: [B, T, H, D]; cos, sin: [B, T, 1, D / 2] float32. The arithmetic is float32, the result has x's dtype.
    """
    x1, x2 = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).to(x.dtype)


def cos_sin(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, 1, D / 2] of positions [B, T]."""
    angles = (positions.to(frequencies.dtype)[..., None] * frequencies)[:, :, None]
    return angles.cos(), angles.sin()


def rotation(config: RopeConfig, head_dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate`. Computed anew: a model cast to bfloat16 would round frequencies kept in a buffer."""
    return cos_sin(inverse_frequencies(config, head_dim).to(positions.device), positions)
