"""One rule for a rank that fails: all ranks fail, with its error, as soon as they meet.

What a rank does by itself, such as reading a file or measuring, it does inside `together` or `on_main`: at their end
every rank learns how it went for all, so that none waits for one that is gone. Inside a collective a rank can tell the
others nothing. One that fails there ends at once, and with it its connections: the others' collective fails, or their
launcher ends them. So nothing collective belongs inside `together` or `on_main`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from ..parts.errors import UserError
from .distributed import launched, start_process_group

T = TypeVar("T")


class Failure(NamedTuple):
    """What the other ranks raise. Not the error itself: a pickle of it may need what only its own rank has."""

    kind: type[Exception]
    arguments: tuple[Any, ...]
    code: int | None = None

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """What the command line prints as one line keeps its class; of anything else the text has to do."""
        if isinstance(error, UserError):
            return cls(type(error), (str(error),), error.code)
        if isinstance(error, OSError) and error.errno is not None:
            return cls(OSError, (error.errno, error.strerror, error.filename))
        return cls(RuntimeError, (f"rank {dist.get_rank()} failed: {type(error).__name__}: {error}",))

    def error(self) -> Exception:
        error = self.kind.__new__(self.kind, *self.arguments)  # its __init__ may take something else than the text
        if isinstance(error, UserError) and self.code is not None:
            error.code = self.code
        return error


@contextmanager
def together() -> Iterator[None]:
    """What the block raises on any rank, every rank raises at its end: the first failing rank's error; collective.

    Needs no engine: the processes of a launch that have no group yet form it at the block's end.
    """
    mine: Exception | None = None
    try:
        yield
    except Exception as error:  # told to the others, then raised
        mine = error
    if not _several():
        if mine:
            raise mine
        return
    failures: list[Failure | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, mine and Failure.of(mine))
    for rank, failure in enumerate(failures):
        if failure and mine and rank == dist.get_rank():
            raise _told(mine)
        if failure:
            raise _told(failure.error()) from mine


def told(error: Exception) -> bool:
    """Whether every rank has raised this error, so that one is enough to print it.

    A launch whose processes have not met yet meets here: with those that fail as well, or at the others' first
    `together`.
    """
    if launched() and not dist.is_initialized():
        with suppress(Exception), together():
            raise error
        return True
    return bool(getattr(error, "told", False))


def _told(error: Exception) -> Exception:
    error.told = True  # type: ignore[attr-defined]
    return error


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank, or its error, as `together` does it; collective."""
    if not _several():
        return work()
    box: list[Any] = [None]
    with together():
        if dist.get_rank() == 0:
            box[0] = work()
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _several() -> bool:
    """Whether there are other ranks; joins their group."""
    if launched():
        start_process_group()
    return dist.is_initialized() and dist.get_world_size() > 1
