"""Folders that are either whole or absent: written aside under a hidden name, flushed to disk, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..data.files import flush
from ..parts.errors import ConfigError


def check_free(path: Path) -> None:
    """Raises ConfigError unless `path` is absent or an empty folder: nothing that is there is written over."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{path}: already there and not an empty folder; give another destination, or remove it")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        what = "may not be written to" if above.is_dir() else "is a file"
        raise ConfigError(f"{path}: {above} {what}; give another destination")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that becomes `path` when the block ends without an error, and vanishes otherwise,
    with the folders above it that were made for it.

    Raises ConfigError when there is something at `path`, which stays as it was.
    """
    check_free(path)
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=".partial"))
        yield partial
        for entry in (*partial.rglob("*"), partial):
            entry.chmod(0o755 if entry.is_dir() else 0o644)  # temporary files and folders are for the owner's eyes only
            flush(entry)
        check_free(path)  # it may have come into being meanwhile
        os.replace(partial, path)
    except BaseException:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # somebody else's by now, and not empty
            for parent in made:
                parent.rmdir()
        raise
