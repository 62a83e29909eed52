"""The bytes of a file, compressed or not."""

import lzma
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from ..parts.errors import DataError, UserError

CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
"""Endings that pyarrow unpacks, with its names for them. xz and zip come from the standard library."""
ARCHIVES = (".tar", ".tgz", ".7z", ".rar")


def contents(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """(name, content) of a file, unpacked where its name ends in .gz, .bz2, .xz, .zst or .lz4; of a .zip, each member.

    Raises DataError for other archives. Read inside `readable`: a damaged file shows only there.
    """
    if path.suffix in ARCHIVES or path.with_suffix("").suffix in ARCHIVES:
        raise DataError(f"{path}: this kind of archive is not read; unpack it, or use .gz, .bz2, .xz, .zst or .zip")
    if path.suffix != ".zip":
        with _unpacked(path) as file:
            yield path.name, file
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith("/") and not name.startswith("__MACOSX/"):
                with archive.open(name) as file:
                    yield f"{path.name}/{name}", cast(BinaryIO, file)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise DataError for what a file raises that is cut off, damaged, locked, or of another kind than named."""
    try:
        yield
    except UserError:
        raise
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read to its end ({reason}); replace the file") from None


def _unpacked(path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    if path.suffix in CODECS:
        import pyarrow

        return cast(BinaryIO, BufferedReader(pyarrow.input_stream(str(path), compression=CODECS[path.suffix])))
    return path.open("rb")
