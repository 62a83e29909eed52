"""Token mixers: one file each, one line here. A registered mixer is a recipe section and a contract-test parameter."""

from .attention import Attention
from .base import Mixed, Mixer, MixerConfig
from .gated_deltanet import GatedDeltaNet

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "gated_deltanet": GatedDeltaNet,
}

__all__ = ["MIXERS", "Mixed", "Mixer", "MixerConfig"]
