"""Many calls in a few processes, where a call that fails, or a process that dies, is one result among others."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Outcome(NamedTuple):
    """What became of one call: its value, or a line that says why there is none."""

    call: Any
    value: Any = None
    error: str | None = None


def run_parallel(function: Callable[[Any], Any], calls: list[Any], jobs: int) -> Iterator[Outcome]:
    """function(call) for every call, at most `jobs` at once, each in a fresh process's only thread; as they end.

    `function` is importable and calls and values can be pickled: processes are spawned, and stay for further calls. A
    process that dies costs the call that it was at, and is replaced. Closed early, this ends what it has started.
    """
    todo, idle, busy = deque(calls), [], {}
    try:
        while todo or busy:
            while todo and len(busy) < jobs:
                worker, call = idle.pop() if idle else _Worker(function), todo.popleft()
                worker.pipe.send(call)
                busy[worker.pipe] = (worker, call)
            for pipe in wait(list(busy)):
                worker, call = busy.pop(pipe)
                try:
                    value, error = worker.pipe.recv()
                    idle.append(worker)
                except (EOFError, ConnectionResetError):
                    value, error = None, f"its process died with exit code {worker.ended()}; out of memory?"
                yield Outcome(call, value, error)
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.process.terminate()
            worker.ended()


class _Worker:
    """A process that answers every call it is sent with (value, error)."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)  # read when the process loads its libraries
        try:
            self.process: BaseProcess = context.Process(target=_serve, args=(function, theirs), daemon=True)
            self.process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()

    def ended(self) -> int | None:
        """Wait for the end; the exit code."""
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            call = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = (function(call), None)
        except Exception as error:  # whatever it is, it is this call's result
            answer = (None, " ".join(f"{type(error).__name__}: {error}".split()))
        pipe.send(answer)
