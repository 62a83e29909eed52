"""Documents of a recipe's source: registered packages, local files, or a hub data set that is streamed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parts.errors import ConfigError, DataError, concerning
from .document import Document
from .find import files_below, find_files
from .registered.sources import read
from .rows import read_rows
from .selection import field_of, named, selected
from .unpack import contents, readable

if TYPE_CHECKING:
    from ..recipe.data import SourceConfig


@dataclass
class Tally:
    """What reading a source came to."""

    files: int = 0
    documents: int = 0
    without_text: int = 0
    without_field: int = 0
    mended: int = 0
    unmet: list[str | int] = field(default_factory=list)

    def met(self, value: Any) -> None:
        """Count what a document has in the field that select looks at."""
        self.without_field += value is None
        for one in named(value, self.unmet):
            self.unmet.remove(one)

    def line(self, source: "SourceConfig") -> str:
        """In words: what was found, and what was left out or altered without being asked for."""
        found = [f"{self.files} files"] * bool(self.files) + [f"{self.documents} documents taken"]
        notes = {
            "skipped {} documents without text": self.without_text,
            f"{{}} documents have no {source.select.field}": self.without_field,
            "{} documents held half a surrogate pair, which became U+FFFD": self.mended,
        }
        said = [note.format(count) for note, count in notes.items() if count]
        said += [f"no document has {source.select.field}={value!r}, which select names" for value in self.unmet]
        return f"source {source.name!r}: " + ", ".join(found) + "".join(f"; {note}" for note in said)


def documents(
    source: "SourceConfig", cache: str | Path, tally: Tally | None = None, *, by_id: bool = False
) -> Iterator[Document]:
    """Selected documents of `source` with stable ids, in a fixed order; documents without text are left out.

    `select.hash` looks at the id of a registered source's documents and at the text of others: names of files and
    sources are free, and equal texts go together. by_id: at the id of all, as runs were trained once. `tally` is filled
    on the way. Raises ConfigError when the source holds none that is selected, or no field that is asked for.
    """
    tally = tally or Tally()
    tally.unmet = [*(source.select.among or ()), *(source.select.exclude or ())]
    by_id = by_id or source.format == "registered"
    taken = 0
    found = read(source.name, cache) if source.format == "registered" else _documents(source, tally)
    with concerning(f"source {source.name!r}"):
        for document in found:
            if source.max_bytes is not None and taken >= source.max_bytes:
                tally.unmet = []  # what follows may have them
                return
            if not document.text.strip():
                tally.without_text += 1
                continue
            document = _encodable(document, tally)
            position = 0.0
            if source.select.hash:
                position = document.position if by_id else document.text_position
            chosen = selected(document, source.select, position)
            if source.select.field:
                tally.met(field_of(document, source.select.field))
            if chosen:
                taken += len(document.text.encode())
                tally.documents += 1
                yield document
        if not taken:
            raise ConfigError("empty corpus: no document has text and passes its select")


def files_of(source: "SourceConfig") -> list[Path]:
    """The files that `path` names, sorted: one, a pattern's, or for format=folder every .txt below it; maybe none."""
    path = Path(str(source.path)).expanduser()
    return files_below(path, ".txt") if source.format == "folder" else find_files(path)


def name_of(source: "SourceConfig", path: Path) -> str:
    """What a file is called within its source: its path below the folder, or its name."""
    if source.format == "folder":
        return path.relative_to(Path(str(source.path)).expanduser()).as_posix()
    return path.name


def no_files(source: "SourceConfig") -> ConfigError:
    """What to say when `files_of` finds nothing."""
    if source.format == "folder":
        return ConfigError(f"path={source.path}: no such .txt file below; correct the path")
    if Path(str(source.path)).expanduser().is_dir():
        named_so = f"name its files, e.g. {source.path}/*.{source.format}"
        fix = "set format=folder" if source.format == "text" else named_so
        return ConfigError(f"path={source.path}: a folder; {fix}")
    return ConfigError(f"path={source.path}: no such file; correct the path")


def _documents(source: "SourceConfig", tally: Tally) -> Iterator[Document]:
    files = files_of(source) if source.format != "hub" else []
    if not files and source.format != "hub":
        raise no_files(source)
    tally.files = len(files)
    yield from _text_files(source, files) if source.format in ("text", "folder") else _rows(source, files)


def _text_files(source: "SourceConfig", files: list[Path]) -> Iterator[Document]:
    """One document per file; its id is the path below the folder, or the file's name.

    A byte order mark and carriage returns at the ends of lines frame the text and are no part of it.
    """
    for path in files:
        with readable(path):
            for name, file in contents(path):
                name = name_of(source, path) + name.removeprefix(path.name)  # a member of a .zip stands behind it
                try:
                    text = file.read().decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
                text = text.replace("\r\n", "\n").replace("\r", "\n")
                yield Document(f"{source.name}/{name}", text, {"file": name})


def _rows(source: "SourceConfig", files: list[Path]) -> Iterator[Document]:
    """One document per row; other columns are meta. A row without an id goes by its number."""
    for index, row in enumerate(read_rows(source, files)):
        text = row.pop(source.text_field)
        if text is not None and not isinstance(text, str):
            raise ConfigError(
                f"row {index} has {type(text).__name__} in text_field={source.text_field!r}; name the field of the text"
            )
        id = row.get("id")
        yield Document(f"{source.name}/{f'{index:09d}' if id is None else id}", text or "", row)


def _encodable(document: Document, tally: Tally) -> Document:
    """The document; JSON can hold half a surrogate pair, which no UTF-8 has: U+FFFD stands for it."""
    if document.text.isascii():
        return document
    try:
        document.text.encode()
    except UnicodeEncodeError:
        tally.mended += 1
        text = document.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return Document(document.id, text, document.meta)
    return document
