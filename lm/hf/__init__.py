"""The bridge to Hugging Face: checkpoints in and out, and the `hybridlm` model type. Names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .exporting import save_pretrained
    from .importing import load_pretrained

__all__ = ["load_pretrained", "save_pretrained"]

_HOME = {"load_pretrained": ".importing", "save_pretrained": ".exporting"}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
