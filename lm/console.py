"""Small things that verbs say."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console


@contextlib.contextmanager
def stage(console: Console, what: str) -> Iterator[None]:
    """Say what is being done and, when it is over, how long it took."""
    started = time.perf_counter()
    console.print(f"{what} ...", highlight=False)
    yield
    console.print(f"{what}: {time.perf_counter() - started:.1f} s", highlight=False)
