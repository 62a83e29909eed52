"""A checkpoint's JSON files, and what kind of value each key of a config.json has that any family reads.

A file edited by hand is told which key is wrong, before a size of the wrong kind is computed with.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ..parts.errors import CheckpointError
from ..parts.strict import Strict

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError when the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); get the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no JSON object but a {type(found).__name__}; get the file again")
    return found


class Kinds(Strict):
    """Keys that are absent or null are left to the families; keys that none of them reads may be anything."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Rope(Kinds):
    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Positive | None = None
    factor: Annotated[float, Field(ge=1)] | None = None
    original_max_position_embeddings: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_slow: Positive | None = None
    beta_fast: Positive | None = None
    attention_factor: Positive | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None


class ConfigFile(Kinds):
    architectures: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    hidden_act: str | None = None
    vocab_size: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Count | None = None
    original_max_position_embeddings: Count | None = None
    linear_num_key_heads: Count | None = None
    linear_num_value_heads: Count | None = None
    linear_key_head_dim: Count | None = None
    linear_value_head_dim: Count | None = None
    linear_conv_kernel_dim: Count | None = None
    rms_norm_eps: Positive | None = None
    attention_dropout: float | None = None
    layer_types: list[str] | None = None
    sliding_window: Count | None = None
    max_window_layers: Annotated[int, Field(ge=0)] | None = None
    use_sliding_window: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None
    linear_allow_neg_eigval: bool | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Positive | None = None
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
