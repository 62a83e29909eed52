"""Token mixers: one file each, one line here. A registered mixer is a recipe section and a contract-test parameter."""

from typing import TYPE_CHECKING

from ..parts.lazy import on_first_use
from .registry import Registry

if TYPE_CHECKING:
    from .base import Mixed, Mixer
    from .options import MixerConfig

# name in recipes -> file and class; options are the class NAMEConfig of the same file, before it imports torch
MIXERS = Registry(
    {
        "attention": "attention:Attention",
        "moh": "moh:MoH",
        "band": "band:Band",
        "gated_deltanet": "gated_deltanet:GatedDeltaNet",
        "deltanet": "deltanet:DeltaNet",
        "gla": "gla:GLA",
        "hgrn": "hgrn:HGRN",
        "hgrn2": "hgrn2:HGRN2",
        "retnet": "retnet:RetNet",
        "gated_conv": "gated_conv:GatedConv",
    }
)

__all__ = ["MIXERS", "Mixed", "Mixer", "MixerConfig"]

__getattr__ = on_first_use(__name__, {"Mixed": ".base", "Mixer": ".base", "MixerConfig": ".options"})
