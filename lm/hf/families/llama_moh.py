"""MoH-LLaMA3-8B as its authors published it: a Llama's files, whose own code routes heads by fixed ratios.

The code (github.com/SkyworkAI/MoH at 66bb340, a LlamaForCausalLM with LlamaConfig) takes the first half of the heads as
shared and a quarter of all more for each token, rounded down, and computes the router in the model's dtype. config.json
has no key for any of it. What tells it from a Llama is `auto_map`, by which that code is loaded, with its vocabulary.
"""

from typing import Any

from ...parts.errors import ConfigError

NAME = "moh-llama3"
VOCABULARY = 160_896
"""Tokens of the published model, LLaMA3's and Chinese ones; no other Llama has as many."""


def is_published_moh(config: dict[str, Any]) -> bool:
    """Whether a Llama's config.json is that of the published model."""
    remote = config.get("auto_map")
    named = remote.get("AutoModelForCausalLM") if isinstance(remote, dict) else None
    return (
        config.get("model_type") == "llama"
        and config.get("vocab_size") == VOCABULARY
        and isinstance(named, str)
        and named.endswith("LlamaForCausalLM")
    )


def published_heads(n_heads: int) -> dict[str, Any]:
    """attention.heads of a model with these heads under the published code. Raises ConfigError where that fails."""
    if n_heads < 4 or n_heads % 2:
        raise ConfigError(
            f"{NAME}: {n_heads} heads; the published code needs an even number of 4 or more, use shared= and active="
        )
    shared = n_heads // 2
    return {"router": "query_norm", "shared": shared, "active": shared + n_heads // 4, "router_dtype": "model"}
