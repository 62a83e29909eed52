"""Random numbers that are the same on every machine, and options of a task that follow from its others."""

import hashlib
from typing import TypeVar

import numpy as np

from .task import Task

AnyTask = TypeVar("AnyTask", bound=Task)


def generator(kind: str, seed: int, stream: str = "examples") -> np.random.Generator:
    """Philox (Salmon et al. 2011), keyed by a hash of the names and the seed: counters, no state but its own."""
    digest = hashlib.sha256(f"{kind}/{stream}/{seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def distinct(rng: np.random.Generator, n: int, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """`size` different ids below n in every cell, every ordered choice as likely: [*shape, size]."""
    if n <= 4 * size:
        return rng.random((*shape, n)).argsort(-1, kind="stable")[..., :size]
    # What repeats an earlier id of its cell is drawn anew until nothing does. No step looks at which ids they are, so
    # every ordered choice is as likely, and no array is larger than the result.
    ids = rng.integers(0, n, (*shape, size)).reshape(-1, size)
    pending = np.arange(len(ids))
    while len(pending):
        cells = ids[pending]
        order = cells.argsort(1, kind="stable")
        ranked = np.take_along_axis(cells, order, 1)
        repeats = np.zeros(cells.shape, dtype=bool)
        np.put_along_axis(repeats, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
        cells[repeats] = rng.integers(0, n, repeats.sum())
        ids[pending] = cells
        pending = pending[repeats.any(1)]
    return ids.reshape(*shape, size)


def derive(task: AnyTask, **sizes: int) -> AnyTask:
    """Set sizes that follow from the task's other options; 0 stands for "left out". For validators.

    Raises ValueError where another size was given.
    """
    for name, size in sizes.items():
        given = getattr(task, name)
        if given not in (0, size):
            raise ValueError(f"{task.kind}.{name}: {given}, but the other options make it {size}; leave it out")
        object.__setattr__(task, name, size)  # an assignment would validate again, and so on for ever
    return task
