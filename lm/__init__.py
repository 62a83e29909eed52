"""The language model and everything that trains it. Public names load on first use, so `--help` never imports torch."""

from typing import TYPE_CHECKING

from .parts.lazy import on_first_use

if TYPE_CHECKING:
    from .model import HybridLM
    from .recipe.recipe import Recipe

__all__ = ["HybridLM", "Recipe"]

__getattr__ = on_first_use(__name__, {"Recipe": ".recipe.recipe", "HybridLM": ".model"})
