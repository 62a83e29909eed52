"""The registered mixers by name: their options at once, their layers, which need torch, when they are asked for."""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING

from .options import MixerConfig
from .stages import run_in_two_stages

if TYPE_CHECKING:
    from .base import Mixer


class Registry(MutableMapping[str, "type[Mixer]"]):
    """Name -> mixer class. homes: "file:Class" by name, the file in this folder."""

    def __init__(self, homes: dict[str, str]):
        self._entries: dict[str, str | type[Mixer]] = dict(homes)
        run_in_two_stages({_module(home) for home in homes.values()})

    def __getitem__(self, name: str) -> "type[Mixer]":
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = getattr(import_module(_module(entry)), entry.partition(":")[2])
        return entry

    def __setitem__(self, name: str, mixer: "type[Mixer]") -> None:
        self._entries[name] = mixer

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # Mapping's own would load the layer

    def options(self, name: str) -> type[MixerConfig]:
        """The mixer's options: the class NAMEConfig beside the mixer NAME, those of every mixer if it has none."""
        entry = self._entries[name]
        if not isinstance(entry, str):
            return entry.Config
        first_stage = vars(import_module(_module(entry)))
        return first_stage.get(f"{entry.partition(':')[2]}Config", MixerConfig)


def _module(home: str) -> str:
    return f"{__package__}.{home.partition(':')[0]}"
