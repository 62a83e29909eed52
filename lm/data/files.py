"""Files that are whole or absent: written aside, flushed to disk, then renamed. And files of one record a line."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..parts.errors import DataError


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error, and vanishes otherwise."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)  # mkstemp makes files that only the owner reads
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic(path) as file:
        file.write(content)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any, indent: int | None = 1) -> str:
    """JSON with null for numbers that are not finite: it has no other word for them."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, list | tuple) else value


def append_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Add a line of JSON for each record, in one write; a missing file is made. Numbers that are not finite are null.

    A process killed meanwhile leaves at most one broken line, and nothing is ever added to that one.
    """
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        broken = file.read(1) not in (b"", b"\n")
        file.write(("\n" * broken + "".join(to_json(record, None) + "\n" for record in records)).encode())


def read_records(path: Path) -> list[dict[str, Any]]:
    """What `append_records` wrote, without the lines that a killed process left unfinished; none of a missing file.

    Raises DataError for a line that was no record from its beginning.
    """
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if line.startswith("{"):
                continue
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}: not a file of one JSON record a line; move it away")
        records.append(record)
    return records
