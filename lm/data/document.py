"""What every source yields and every later stage consumes."""

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `id` is stable: the same document has it in every run, whatever else is selected beside it."""

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def position(self) -> float:
        """The id's place in [0, 1): uniform over ids, so an interval of it is a reproducible random sample."""
        return position_of(self.id)

    @property
    def text_position(self) -> float:
        """The text's place in [0, 1): the same for equal texts, whatever their ids and files are called."""
        return position_of(self.text)


def position_of(text: str) -> float:
    """The place of the text's hash in [0, 1), uniform over different texts."""
    number = int(hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest(), 16)
    # the last two digits lead: [0, 0.02) is the usual split by `hash % 100 < 2`
    return (number % 100 + number // 100 % 10**13 / 10**13) / 100


def digest(*parts: object) -> str:
    """Hex SHA-256 of the parts' reprs: the fingerprints of tokenizers, packs and loaders are made of these."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()
