"""The language model and everything that trains it. Public names load on first use, so `--help` never imports torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Recipe
    from .model import HybridLM

__all__ = ["HybridLM", "Recipe"]

_HOME = {"Recipe": ".config", "HybridLM": ".model"}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
