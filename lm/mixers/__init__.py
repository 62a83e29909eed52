"""Token mixers: one file each, one line here. A registered mixer is a recipe section and a contract-test parameter."""

from .attention.attention import Attention
from .base import Mixed, Mixer
from .deltanet import DeltaNet
from .gated_conv import GatedConv
from .gated_deltanet import GatedDeltaNet
from .gla import GLA
from .hgrn import HGRN
from .hgrn2 import HGRN2
from .options import MixerConfig
from .retnet import RetNet

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "gated_deltanet": GatedDeltaNet,
    "deltanet": DeltaNet,
    "gla": GLA,
    "hgrn": HGRN,
    "hgrn2": HGRN2,
    "retnet": RetNet,
    "gated_conv": GatedConv,
}

__all__ = ["MIXERS", "Mixed", "Mixer", "MixerConfig"]
