"""Measurements as files: RUN/eval/{checkpoint}/{kind}.json, which reports read."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from ..lm.data.files import to_json, write_atomically


class Saved:
    """A dataclass that is kept as JSON, with its `kind` among its fields."""

    kind: ClassVar[str]

    def asked(self) -> Any:
        """What was put to the model and how: results that differ in it do not replace each other."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; missing folders are made.

        A file of something else that was asked, or that cannot be read, is kept beside it, as {name}-1.json and so on.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and ((kept := self.kept(path)) is None or kept.asked() != self.asked()):
            set_aside(path)
        content = {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]  subclasses are dataclasses
        write_atomically(path, to_json(content).encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        raise NotImplementedError

    @classmethod
    def kept(cls, path: Path) -> Self | None:
        """What the file holds; None where this version cannot read it: no new result is lost for an old file."""
        try:
            return cls.load(path)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def plot(self, folder: Path) -> Path | None:
        """Draw what there is to see into `folder`, and say where it is; None where there is nothing."""
        return None

    @staticmethod
    def read(path: str | Path) -> dict[str, Any]:
        """The fields that `save` wrote, as plain values."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        del content["kind"]
        return content


def set_aside(path: Path) -> None:
    """Rename a file to {name}-1.json, or the first number that is free."""
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(1))
    path.rename(next(free for free in numbered if not free.exists()))
