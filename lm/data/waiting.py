"""One process prepares, the others wait for it: a lock that tells who holds it."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .files import write_atomically

SECONDS = 60.0  # between two words of those who wait


@contextmanager
def hold(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`. The system frees it when its holder ends, however that ends: there is no time limit.

    `say` is told every minute whom one waits for. Raises OSError where the file cannot be made.
    """
    lock, holder = FileLock(path), path.with_name(f"{path.name}-holder")
    while True:
        try:
            lock.acquire(timeout=SECONDS, poll_interval=0.1)
            break
        except Timeout:
            who = "another process"
            with suppress(FileNotFoundError):  # between two holders
                who = holder.read_text(encoding="utf-8")
            say(f"waiting for {who}, which holds {path}")
    try:
        since = f"{datetime.now():%Y-%m-%d %H:%M}"
        write_atomically(holder, f"process {os.getpid()} on {socket.gethostname()}, at work since {since}".encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
