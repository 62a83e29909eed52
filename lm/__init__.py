"""The language model and everything that trains it. Public names load on first use, so `--help` never imports torch."""

from typing import TYPE_CHECKING

from .lazy import on_first_use

if TYPE_CHECKING:
    from .config import Recipe
    from .model import HybridLM

__all__ = ["HybridLM", "Recipe"]

__getattr__ = on_first_use(__name__, {"Recipe": ".config", "HybridLM": ".model"})
