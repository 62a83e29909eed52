"""The model in plain PyTorch. Nothing in this folder knows how it is trained."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cache import Cache
    from .decoder import HybridLM, Output

__all__ = ["Cache", "HybridLM", "Output"]

_HOME = {"HybridLM": ".decoder", "Output": ".decoder", "Cache": ".cache"}


def __getattr__(name: str):  # on first use: mixers need parts of this package, and the decoder needs the mixers
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
