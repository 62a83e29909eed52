"""How many tokens a model was made for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig


def length_limit(config: "BaseModelConfig") -> int | None:
    """Tokens after which positions mean what training never showed; None where no layer has an absolute one.

    Recurrent layers, attention without positions and rotary attention in a window within the context have no limit.
    """
    options = [spec.options for spec in config.layer_specs()]
    rotary = [own for own in options if getattr(own, "rope", None) is not None]
    far = any((getattr(own, "window", None) or config.context + 1) > config.context for own in rotary)
    return config.context if far or config.positions == "learned" else None
