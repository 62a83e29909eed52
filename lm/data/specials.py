"""The tokens around a text: which a document is packed with, which a prompt begins with, which end what is written.

This project's own models see BOS in front of every document and of every prompt. An imported model is asked as its
source's tokenizer would ask it; a file beside its tokenizer says how.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ..parts.errors import DataError
from .files import write_atomically

SPECIALS_FILE = "prompts.json"


@dataclass(frozen=True)
class Specials:
    """bos_id, eos_id: around a document when it is packed. front, back: around a prompt. prefix_id: what stands before
    a text whose first token is to be scored, where a prompt has nothing in front. stop_ids: what ends a written text.
    """

    bos_id: int
    eos_id: int
    front: tuple[int, ...]
    back: tuple[int, ...]
    prefix_id: int
    stop_ids: tuple[int, ...]

    @classmethod
    def own(cls, bos_id: int, eos_id: int) -> Self:
        """This project's own: BOS in front of everything."""
        return cls(bos_id, eos_id, (bos_id,), (), bos_id, (eos_id,))

    @property
    def is_own(self) -> bool:
        return self == Specials.own(self.bos_id, self.eos_id)

    def save(self, folder: Path) -> None:
        """Leave in `folder` what `load` reads: no file for this project's own."""
        if self.is_own:
            (folder / SPECIALS_FILE).unlink(missing_ok=True)
        else:
            write_atomically(folder / SPECIALS_FILE, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What `save` wrote; None without the file. Raises DataError when it is damaged."""
        file = folder / SPECIALS_FILE
        if not file.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            lists: dict[str, Any] = {name: tuple(found[name]) for name in ("front", "back", "stop_ids")}
            return cls(**(found | lists))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}: cannot be read ({error}); convert the checkpoint again") from None
