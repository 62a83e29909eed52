"""Which layers of a Llama-family checkpoint have a sliding window: its config.json and our layers, both ways."""

from typing import Any

from ...parts.errors import ConfigError
from .llama_members import Architecture


def windows_of(config: dict[str, Any], architecture: Architecture) -> list[int | None]:
    """Each layer's sliding window, itself included; None sees everything before it."""
    n_layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if architecture.windows == "none":
        return [None] * n_layers
    if architecture.windows == "same":
        return [window] * n_layers
    if not config.get("use_sliding_window"):
        return [None] * n_layers
    window = config.get("sliding_window", 4096)
    full = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "full_attention" if i < full else "sliding_attention" for i in range(n_layers)
    ]
    if len(kinds) != n_layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"config.json: layer_types {kinds}; allowed: full_attention or sliding_attention for each of the "
            f"{n_layers} layers"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def window_keys(windows: list[int | None], architecture: Architecture) -> dict[str, Any]:
    """The keys of config.json that say so; `windows` have one size."""
    if architecture.windows == "none":
        return {}
    if architecture.windows == "same":
        return {"sliding_window": windows[0]}
    full = next((i for i, window in enumerate(windows) if window), len(windows))
    return {
        "use_sliding_window": any(windows),
        "sliding_window": max((w for w in windows if w), default=None),
        "max_window_layers": full,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }
