"""The Llama family's rotary embeddings: `rope_parameters` of a config.json and our options, both ways."""

import math
from typing import Any

from ...parts.errors import ConfigError
from ...parts.rope_config import RopeConfig
from .allowed import KnownOptions

# scaling parameters that mean the same on both sides: ours, theirs
ROPE_KEYS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "beta_slow": "beta_slow",
        "beta_fast": "beta_fast",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}
ROPE = KnownOptions(
    translated=("theta", *sorted({ours for keys in ROPE_KEYS.values() for ours in keys})),
    among={"scaling": ("none", *ROPE_KEYS)},
    fixed={"fraction": 1.0},
)


def rope_section(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE from `rope_parameters` (transformers 5) or from `rope_scaling` and `rope_theta` (before it)."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if any(isinstance(value, dict) for value in given.values()):
        raise ConfigError("config.json: rope_parameters differ by layer type; allowed: one set for all layers")
    if kind != "default" and kind not in ROPE_KEYS:
        field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        raise ConfigError(
            f"config.json: {field}.rope_type {kind!r} is not supported; allowed: default, {', '.join(ROPE_KEYS)}; "
            "convert a checkpoint with one of these"
        )
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ConfigError(f"config.json: partial_rotary_factor {partial}; allowed: 1, all channels of a head rotate")
    section: dict[str, Any] = {"theta": given.get("rope_theta") or config.get("rope_theta") or 10000.0}
    if kind == "default":
        return section
    context = config.get("original_max_position_embeddings")
    defaults = {"original_max_position_embeddings": config["max_position_embeddings"]}
    found = defaults | given | ({"original_max_position_embeddings": context} if context else {})
    needed = ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3" else ("factor",)
    for key in needed:
        if found.get(key) is None:
            raise ConfigError(f"config.json: RoPE type {kind!r} without {key}; restore the whole config.json")
    if kind == "yarn" and found.get("attention_factor") is None:
        found["attention_factor"] = _mscale(found)
    section["scaling"] = kind
    return section | {mine: found[theirs] for mine, theirs in ROPE_KEYS[kind].items() if found.get(theirs) is not None}


def _mscale(found: dict[str, Any]) -> float | None:
    """yarn's attention factor where a checkpoint gives it as the quotient of two scales; None if it does not."""
    scales = [float(found.get(key) or 0) for key in ("mscale", "mscale_all_dim")]
    if not all(scales):
        return None
    top, bottom = (0.1 * scale * math.log(found["factor"]) + 1 for scale in scales)
    return top / bottom


def rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    """The config.json's entry."""
    if rope.scaling == "none":
        return {"rope_type": "default", "rope_theta": rope.theta}
    given = {theirs: getattr(rope, mine) for mine, theirs in ROPE_KEYS[rope.scaling].items()}
    return {
        "rope_type": rope.scaling,
        "rope_theta": rope.theta,
        **{theirs: value for theirs, value in given.items() if value is not None},
    }
