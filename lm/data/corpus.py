"""Documents of a recipe's source: registered packages, local files, or a hub data set that is streamed."""

from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parts.errors import ConfigError, DataError
from .document import Document
from .registered.registries import sha256_of
from .registered.sources import get_source, read

if TYPE_CHECKING:
    from ..recipe.data import Select, SourceConfig


def documents(source: "SourceConfig", cache: str | Path) -> Iterator[Document]:
    """Selected documents of `source` with stable ids, in a fixed order; documents without text are left out.

    Raises ConfigError when the source holds none that is selected, or when a field that is asked for is missing.
    """
    taken = 0
    for document in _all_documents(source, cache):
        if source.max_bytes is not None and taken >= source.max_bytes:
            return
        if document.text.strip() and selected(document, source.select, source.name):
            taken += len(document.text.encode())
            yield document
    if not taken:
        raise ConfigError(f"source {source.name!r}: empty corpus: no document has text and passes its select")


def selected(document: Document, select: "Select", source: str) -> bool:
    """Whether all conditions hold; min and max are inclusive, the hash interval is [lo, hi)."""
    if select.hash is not None and not select.hash[0] <= document.position < select.hash[1]:
        return False
    if select.field is None:
        return True
    value = _field(document, select.field, source)
    try:
        return (
            (select.min is None or value >= select.min)
            and (select.max is None or value <= select.max)
            and (select.among is None or value in select.among)
            and (select.exclude is None or value not in select.exclude)
        )
    except TypeError:
        bound = select.min if select.min is not None else select.max
        raise ConfigError(
            f"source {source!r}: select compares {select.field}={value!r} of {document.id} with {bound!r}; "
            "write the bound in the field's type"
        ) from None


def _field(document: Document, field: str, source: str) -> Any:
    if field == "id":
        return document.id
    if field not in document.meta:
        known = ", ".join(sorted({"id", *document.meta}))
        raise ConfigError(f"source {source!r}: select.field={field!r} is not in {document.id}; its fields: {known}")
    return document.meta[field]


def content_key(source: "SourceConfig") -> list[str]:
    """What the source's documents depend on, besides its options: pinned or computed file hashes.

    A hub data set has no hash here: its name stands for it.
    """
    if source.format == "registered":
        return [get_source(source.name).pin.sha256]
    if source.format == "hub":
        return [str(source.path)]
    return [f"{path.name}:{sha256_of(path)}" for path in _files(source)]


def _all_documents(source: "SourceConfig", cache: str | Path) -> Iterator[Document]:
    if source.format == "registered":
        return read(source.name, cache)
    if source.format in ("text", "folder"):
        return _text_files(source)
    return _rows(source)


def _files(source: "SourceConfig") -> list[Path]:
    """Files that `path` names: one file, a glob, or for format=folder every .txt below it; sorted."""
    path = Path(str(source.path)).expanduser()
    if source.format == "folder":
        found = sorted(path.rglob("*.txt"))
    else:
        found = sorted(file for name in glob(str(path), recursive=True) if (file := Path(name)).is_file())
    if not found:
        kind = ".txt file below" if source.format == "folder" else "file"
        raise ConfigError(f"source {source.name!r}: path={source.path}: no such {kind}; correct the path")
    return found


def _text_files(source: "SourceConfig") -> Iterator[Document]:
    """One document per file; its id is the path below the folder, or the file's name."""
    root = Path(str(source.path)).expanduser()
    for path in _files(source):
        name = path.relative_to(root).as_posix() if source.format == "folder" else path.name
        try:
            yield Document(f"{source.name}/{name}", path.read_text(encoding="utf-8"), {"file": name})
        except UnicodeDecodeError as error:
            raise DataError(f"source {source.name!r}: {path} is not UTF-8 ({error.reason}); convert it") from None


def _rows(source: "SourceConfig") -> Iterator[Document]:
    """One document per row of JSON, JSON lines, Parquet or a hub data set, read as a stream; other columns are meta."""
    for index, row in enumerate(_stream(source)):
        if not isinstance(row.get(source.text_field), str):
            columns = ", ".join(sorted(row))
            raise ConfigError(
                f"source {source.name!r}: row {index} has no text in text_field={source.text_field!r}; "
                f"columns: {columns}"
            )
        text = row.pop(source.text_field)
        yield Document(f"{source.name}/{row.get('id', f'{index:09d}')}", text, row)


def _stream(source: "SourceConfig") -> Iterator[dict[str, Any]]:
    import datasets

    try:
        if source.format == "hub":
            name, _, config = str(source.path).partition(":")
            rows = datasets.load_dataset(name, config or None, split=source.split, streaming=True)
        else:
            files = [str(path) for path in _files(source)]
            rows = datasets.load_dataset(source.format, data_files=files, split="train", streaming=True)
        for row in rows:
            yield dict(row)
    except ConfigError:
        raise
    except Exception as error:  # the library raises dozens of types, of its own and of HTTP clients
        reason = " ".join(str(error).split()) or type(error).__name__
        fix = "; check the network, or give local files with format=parquet" if source.format == "hub" else ""
        raise DataError(f"source {source.name!r}: cannot read {source.path}: {reason}{fix}") from None
