"""The model in plain PyTorch. Nothing in this folder knows how it is trained."""

from typing import TYPE_CHECKING

from ..parts.lazy import on_first_use

if TYPE_CHECKING:
    from .cache import Cache
    from .decoder import HybridLM
    from .output import Output

__all__ = ["Cache", "HybridLM", "Output"]

# mixers need parts of this package, and the decoder needs the mixers
__getattr__ = on_first_use(__name__, {"HybridLM": ".decoder", "Output": ".output", "Cache": ".cache"})
