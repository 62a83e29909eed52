"""Measurements as files: RUN/eval/{checkpoint}/{kind}.json, which reports read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from ..lm.data.files import to_json, write_atomically


class Saved:
    """A dataclass that is kept as JSON, with its `kind` among its fields."""

    kind: ClassVar[str]

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]  subclasses are dataclasses
        write_atomically(path, to_json(content).encode())

    def plot(self, folder: Path) -> Path | None:
        """Draw what there is to see into `folder`, and say where it is; None where there is nothing."""
        return None

    @staticmethod
    def read(path: str | Path) -> dict[str, Any]:
        """The fields that `save` wrote, as plain values."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        del content["kind"]
        return content
