"""Softmax attention: what is projected, what is visible, which heads look, what is remembered."""

from typing import TYPE_CHECKING

from ...parts.lazy import on_first_use
from .options import AttentionConfig

if TYPE_CHECKING:
    from .attention import Attention

__all__ = ["Attention", "AttentionConfig"]

__getattr__ = on_first_use(__name__, {"Attention": ".attention"})
