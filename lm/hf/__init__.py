"""The bridge to Hugging Face: checkpoints in and out, and the `hybridlm` model type. Names load on first use."""

from typing import TYPE_CHECKING

from ..parts.lazy import on_first_use

if TYPE_CHECKING:
    from .exporting import save_pretrained
    from .importing import load_pretrained

__all__ = ["load_pretrained", "save_pretrained"]

__getattr__ = on_first_use(__name__, {"load_pretrained": ".importing", "save_pretrained": ".exporting"})
