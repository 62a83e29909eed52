"""One launch at a time trains in a run folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..data.files import write_atomically
from ..parts.errors import ConfigError
from .faults import on_main

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the run folder, which is made if it is missing; collective, rank 0 has the lock.

    The system frees it when its holder ends, however that ends. A new folder into which nothing was written is removed
    again. Raises ConfigError that names the holder, or says why there can be no folder.
    """
    lock = FileLock(folder / LOCK)
    on_main(lambda: _acquire(lock, folder))
    try:
        yield
    finally:
        if lock.is_locked:
            _release(lock, folder)


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        write_atomically(folder / HOLDER, json.dumps(me).encode())
    except Timeout:
        raise ConfigError(
            f"run {str(folder)!r}: {_holder(folder)} is training in it; wait for its end, or give this run a folder of "
            "its own with train.out"
        ) from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"run {str(folder)!r}: cannot be a run folder: {error.strerror}: {error.filename}; give another with "
            "train.out"
        ) from None


def _holder(folder: Path) -> str:
    """Who has the lock. It has not written its name yet if it has only just begun."""
    with suppress(OSError, ValueError, KeyError):
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    return "another process"


def _release(lock: FileLock, folder: Path) -> None:
    (folder / HOLDER).unlink(missing_ok=True)
    if [path.name for path in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink()  # before it is free: who opened it meanwhile does not get it
        folder.rmdir()
    lock.release()
