"""Rows of JSON, Parquet and hub data sets."""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parts.errors import ConfigError, DataError
from .unpack import contents, readable

if TYPE_CHECKING:
    from ..recipe.data import SourceConfig

BOM = b"\xef\xbb\xbf"
PATIENCE = 1000  # rows, after which a field that none of them has counts as misspelt


def read_rows(source: "SourceConfig", files: list[Path]) -> Iterator[dict[str, Any]]:
    """Rows of `files`, or of a hub data set, as a stream; of Parquet the text, the id and the field of
    `select` alone.

    A row that lacks a field has None there. Raises ConfigError when all lack it, DataError for what cannot be read.
    """
    if source.format == "hub":
        found = _hub_rows(source)
    else:
        read = _parquet_rows if source.format == "parquet" else _json_rows
        found = itertools.chain.from_iterable(read(source, path) for path in files)
    return _with_fields(source, found)


def _asked(source: "SourceConfig") -> set[str]:
    """The fields that a row should have."""
    return {source.text_field, source.select.field or "id"} - {"id"}


def _with_fields(source: "SourceConfig", rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    asked = dict.fromkeys(_asked(source))
    missing, columns = set(asked), []
    for index, row in enumerate(rows):
        if missing:
            missing -= row.keys()
            columns = columns or [*row]
            if missing and index + 1 == PATIENCE:
                break
        yield asked | row
    if missing and columns:
        raise _absent(source, missing, columns)


def _absent(source: "SourceConfig", missing: set[str], columns: Iterable[str]) -> ConfigError:
    label = "text_field" if source.text_field in missing else "select.field"
    field = source.text_field if source.text_field in missing else source.select.field
    return ConfigError(f"{label}={field!r} is in no row; columns of the first: {', '.join(sorted(columns))}")


def _json_rows(source: "SourceConfig", path: Path) -> Iterator[dict[str, Any]]:
    with readable(path):
        for name, lines in contents(path):
            for place, row in _json_values(path.parent / name, lines):
                if isinstance(row, str):
                    row = {source.text_field: row}
                if not isinstance(row, dict):
                    raise DataError(f"{place}: no JSON object; give one object a line, or an array of them")
                yield row


def _json_values(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line that is not blank, or of each element of one array."""
    begun = False
    numbered = enumerate(lines, 1)
    for number, line in numbered:
        line = line.removeprefix(BOM).strip() if number == 1 else line.strip()
        place = f"{path}, line {number}"
        if line.startswith(b"[") and not begun:
            whole = b"\n".join([line, *(more for _, more in numbered)])
            for index, value in enumerate(_parsed(place, whole)):
                yield f"{path}, element {index}", value
        elif line:
            yield place, _parsed(place, line)
        begun = begun or bool(line)


def _parsed(place: str, raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))  # from bytes it would guess at UTF-16
    except UnicodeDecodeError as error:
        reason, fix = f"not UTF-8 ({error.reason})", "convert the file"
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        reason, fix = f"not JSON ({error})", "give one JSON object a line, or an array of them"
    raise DataError(f"{place}: {reason}; {fix}")


def _parquet_rows(source: "SourceConfig", path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for field in sorted(_asked(source) - set(names)):
                raise ConfigError(f"{path}: no column {field!r}; columns: {', '.join(sorted(names))}")
            wanted = [name for name in names if name in {*_asked(source), "id"}]
            for batch in file.iter_batches(1000, columns=wanted):
                yield from batch.to_pylist()
    except (OSError, OverflowError, pyarrow.ArrowException) as error:  # overflow: a moment that no date holds
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); replace the file") from None


def _hub_rows(source: "SourceConfig") -> Iterator[dict[str, Any]]:
    """Of a set that lies in Parquet, as most do, other columns are not read: files may disagree about them."""
    import datasets

    name, _, config = str(source.path).partition(":")
    given = {"split": source.split, "streaming": True}
    try:
        rows = datasets.load_dataset(name, config or None, **given)
        first = next(iter(rows), {})
        if first and (missing := _asked(source) - first.keys()):
            raise _absent(source, missing, first)
        wanted = [column for column in first if column in {*_asked(source), "id"}]
        if len(wanted) < len(first):
            with contextlib.suppress(ValueError):  # of a format that has rows, not columns
                rows = datasets.load_dataset(name, config or None, columns=wanted, **given)
        for row in rows:
            yield dict(row)
    except ConfigError:
        raise
    except Exception as error:  # the library raises dozens of types, of its own and of HTTP clients
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot read {source.path}: {reason}; check the network, or give local files with format=parquet"
        ) from None
