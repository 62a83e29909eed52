"""Which content the files of a source hold, known without reading them again.

{cache}/prepared/files.jsonl keeps each file's hash with the size, times and number that it had when it was read;
sources.jsonl what a source's path stood for, so that a finished pack is found when the files have been moved away.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parts.errors import DataError, concerning
from .corpus import files_of, name_of, no_files
from .files import append_records, read_records
from .registered.registries import sha256_of
from .registered.sources import get_source
from .rows import BOM
from .unpack import readable

if TYPE_CHECKING:
    from ..recipe.data import SourceConfig

FILES, SOURCES = "files.jsonl", "sources.jsonl"


class Changed(DataError):
    """A file or a source that is written to while it is read."""

    @classmethod
    def of(cls, what: object) -> "Changed":
        return cls(f"{what} changed while it was read; run `hybridlm prepare` again when it is complete")


@dataclass(frozen=True)
class Content:
    """A file of a source: its name within the source, the hash of its bytes, whether a byte order mark comes first."""

    name: str
    sha256: str
    bom: bool


class Inventory:
    """What is known about files below `folder`. One object answers the same however often it is asked."""

    def __init__(self, folder: Path):
        self.folder, self.writable = folder, True
        self.gone: dict[str, str] = {}
        """What was answered for from memory: paths that name no file any more, by what they are the files of."""
        self._found: dict[str, list[Content]] = {}

    def of(self, source: "SourceConfig") -> list[Content] | None:
        """The files of a source, or None when one of them has never been read as it is now; none of what is no file.

        Where all are gone, those that its path stood for; ConfigError when that is not known either.
        """
        if source.format in ("registered", "hub"):
            return []
        where = _where(source)
        if where not in self._found:
            with concerning(f"source {source.name!r}"):
                files = files_of(source)
                found = [self._known(source, path) for path in files] if files else self._recorded(source)
            if None in found:
                return None
            self._found[where] = [content for content in found if content is not None]
        return self._found[where]

    def learn(self, source: "SourceConfig", advance: Callable[[int], None] = lambda n_bytes: None) -> list[Content]:
        """Like `of`, but files that are new or have changed are read, and remembered if the folder is writable.

        Only who holds the folder's lock may write. `advance` is told the bytes that were read.
        """
        if source.format in ("registered", "hub"):
            return []
        where = _where(source)
        with concerning(f"source {source.name!r}"):
            for path in files_of(source):
                if self._known(source, path) is None:
                    advance(self._read(path))
        self._found.pop(where, None)
        found = self.of(source)
        assert found is not None
        self.remember(where, found)
        return found

    def remember(self, where: str, found: list[Content]) -> None:
        """Keep what `where` stands for, for the time when it is gone."""
        if self._sources.get(where) != found:
            self._write(SOURCES, {"source": where, "files": [[x.name, x.sha256, x.bom] for x in found]})
            self._sources[where] = found

    def recall(self, what: str, path: str, where: str) -> list[Content] | None:
        """What `where` stood for, now that there is no file at the `path` of `what`."""
        if where in self._sources:
            self.gone[what] = path
        return self._sources.get(where)

    def reload(self) -> None:
        """Look again at what other processes have written."""
        for name in ("_files", "_sources"):
            self.__dict__.pop(name, None)
        self._found.clear()

    @cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        return {record["file"]: record for record in read_records(self.folder / FILES)}

    @cached_property
    def _sources(self) -> dict[str, list[Content]]:
        records = read_records(self.folder / SOURCES)
        return {record["source"]: [Content(*file) for file in record["files"]] for record in records}

    def _known(self, source: "SourceConfig", path: Path) -> Content | None:
        record = self._files.get(os.path.abspath(path))
        if record is None or record["stat"] != _stat(path):
            return None
        return Content(name_of(source, path), record["sha256"], record["bom"])

    def _recorded(self, source: "SourceConfig") -> list[Content]:
        found = self.recall(f"source {source.name!r}", str(source.path), _where(source))
        if found is None:
            raise no_files(source)
        return found

    def _read(self, path: Path) -> int:
        """Hash a file and remember it; its bytes. Raises Changed if it is written to meanwhile."""
        with readable(path):
            before = _settled(path)
            with path.open("rb") as file:
                bom = file.read(len(BOM)) == BOM
            sha256 = sha256_of(path)
            if _stat(path) != before:
                raise Changed.of(path)
        record = {"file": os.path.abspath(path), "stat": before, "sha256": sha256, "bom": bom}
        self._write(FILES, record)
        self._files[record["file"]] = record
        return before[0]

    def _write(self, name: str, record: dict[str, Any]) -> None:
        if self.writable:
            append_records(self.folder / name, [record])


def _where(source: "SourceConfig") -> str:
    """A source's path as it is told apart from others; names and selections do not matter."""
    return (
        f"{'folder' if source.format == 'folder' else 'files'}:{os.path.abspath(Path(str(source.path)).expanduser())}"
    )


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _settled(path: Path) -> list[int]:
    """The file's numbers, once a later write would give it another time: clocks of file systems tick."""
    found = _stat(path)
    tick = 2.0 if found[1] % 10**9 == 0 else 0.05  # some know whole seconds only
    age = time.time() - found[1] / 1e9
    if 0 <= age < tick:
        time.sleep(tick - age)
        found = _stat(path)
    return found


def content_key(source: "SourceConfig", found: list[Content], *, old: bool = False) -> list[str]:
    """What the source's documents depend on, besides its options. old: as keys were formed once.

    A hub data set has no hash here: its name stands for it.
    """
    if source.format == "registered":
        return [get_source(source.name).pin.sha256]
    if source.format == "hub":
        return [str(source.path)]
    if old:
        return [f"{content.name.rpartition('/')[2]}:{content.sha256}" for content in found]
    plain = source.format in ("text", "folder")  # a byte order mark was part of their text once
    return [f"{content.name}:{content.sha256}" + ":bom" * (plain and content.bom) for content in found]
