"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) with the context-extension rules in use."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ...kernels.shared.sequences import HOST, tracing
from .context import Context
from .rope_config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Angles per token [config.width(head_dim) / 2], float32."""
    head_dim = config.width(head_dim)
    freq = 1.0 / config.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=HOST) / head_dim)
    if config.scaling == "none":
        return freq
    if config.scaling == "linear":
        return freq / config.factor
    if config.scaling == "yarn":
        keep = _yarn_kept(config, head_dim)
        return freq * keep + freq / config.factor * (1 - keep)
    # llama3: wavelengths beyond original_context / low_freq_factor are stretched, short ones kept, a ramp between
    turns = config.original_context * freq / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return freq * keep + freq / config.factor * (1 - keep)


def _yarn_kept(config: RopeConfig, head_dim: int) -> Tensor:
    """Share of each frequency that is kept: 1 before the one that makes `beta_fast` turns within the original context,
    0 from that of `beta_slow`, a ramp over the indices between (Peng et al. 2023, arXiv 2309.00071, sec. 3.2).
    """
    turns = [config.original_context / (2 * math.pi * beta) for beta in (config.beta_fast, config.beta_slow)]
    low, high = (head_dim * math.log(n) / (2 * math.log(config.theta)) for n in turns)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32, device=HOST) - low) / max(high - low, 1e-3)
    return 1 - ramp.clamp(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves (x1, x2) of each head's first R channels: (x1 cos - x2 sin, x2 cos + x1 sin).

    x: [B, T, H, D]; cos, sin: [B, T, 1, R] as `rotation` has them, R <= D. Computed in the wider of the two dtypes, the
    result has x's.
    """
    R = cos.shape[-1]
    if x.shape[-1] == R:
        return (x * cos + x.roll(R // 2, -1) * sin).to(x.dtype)
    turning, still = x[..., :R], x[..., R:]
    return torch.cat(((turning * cos + turning.roll(R // 2, -1) * sin).to(x.dtype), still), -1)


def cos_sin(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) [B, T, 1, D] of positions [B, T] times frequencies [D / 2]."""
    angles = (positions.to(frequencies.dtype)[..., None] * frequencies)[:, :, None]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def tables(config: RopeConfig, head_dim: int, sequences: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`rotation` at the positions of these sequences, made once for all layers."""
    return sequences.once(_tables, config, head_dim, dtype)


def _tables(sequences: Context, config: RopeConfig, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rotation(config, head_dim, sequences.positions, dtype)


def rotation(
    config: RopeConfig, head_dim: int, positions: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate`, rounded to `dtype` from float32.

    No buffer: a model cast to bfloat16 would round its frequencies.
    """
    cos, sin = cos_sin(_frequencies_on(config, head_dim, positions.device), positions)
    return (config.scale * cos).to(dtype), (config.scale * sin).to(dtype)


def _frequencies_on(config: RopeConfig, head_dim: int, device: torch.device) -> Tensor:
    return inverse_frequencies(config, head_dim).to(device) if tracing() else _frequencies(config, head_dim, device)


@lru_cache(maxsize=64)
def _frequencies(config: RopeConfig, head_dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return inverse_frequencies(config, head_dim).to(device)
