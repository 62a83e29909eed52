"""A queue of jobs, so many at a time, each in a process of one thread: calls of a function, or commands.

What became of each comes as it ends. A job that fails, or a process that dies, is one outcome among others.
"""

import multiprocessing
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Job = TypeVar("Job")


class Outcome(NamedTuple, Generic[Job]):
    """What became of a job after so many seconds: its value, or a line that says why there is none."""

    job: Job
    seconds: float
    value: Any = None
    error: str | None = None


class Command(NamedTuple):
    """A program with its arguments; what it says is added to the file `log`."""

    arguments: list[str]
    log: Path


def run_calls(function: Callable[[Job], Any], jobs: Sequence[Job], at_once: int) -> Generator[Outcome[Job], None, None]:
    """function(job) for every job, at most `at_once` together; as they end.

    `function` is importable and jobs and values can be pickled: processes are spawned, and stay for further jobs. A
    process that dies costs the job that it was at, and is replaced. Closed early, this ends what it has started.
    """
    return _run(lambda: _Caller(function), jobs, at_once)


def run_commands(
    command: Callable[[Job], Command], jobs: Sequence[Job], at_once: int
) -> Generator[Outcome[Job], None, None]:
    """Every job's command, at most `at_once` together; as they end. Another exit code than 0 is an error.

    Closed early, this ends what it has started.
    """
    return _run(lambda: _Program(command), jobs, at_once)


class _Worker(ABC):
    """A process at one job at a time, whose `pipe` can be read when that job has ended, and is closed after its last.

    process: may be waited for and terminated.
    """

    pipe: Connection
    process: BaseProcess | subprocess.Popen

    @abstractmethod
    def begin(self, job: Any) -> None: ...

    @abstractmethod
    def answer(self) -> tuple[Any, str | None]:
        """Value and error of the job that has ended."""

    @abstractmethod
    def ended(self) -> int | None:
        """Wait for the process's end; its exit code."""


def _run(new_worker: Callable[[], _Worker], jobs: Sequence[Job], at_once: int) -> Generator[Outcome[Job], None, None]:
    todo = deque(jobs)
    idle: list[_Worker] = []
    busy: dict[Any, tuple[_Worker, Job, float]] = {}  # by pipe
    try:
        while todo or busy:
            while todo and len(busy) < at_once:
                worker, job = idle.pop() if idle else new_worker(), todo.popleft()
                worker.begin(job)
                busy[worker.pipe] = (worker, job, time.monotonic())
            for pipe in wait(list(busy)):
                worker, job, since = busy.pop(pipe)
                value, error = worker.answer()
                if not worker.pipe.closed:
                    idle.append(worker)
                yield Outcome(job, time.monotonic() - since, value, error)
    finally:
        started = [*idle, *(worker for worker, *_ in busy.values())]
        for worker in started:
            worker.process.terminate()
        for worker in started:
            worker.ended()


class _Caller(_Worker):
    """Answers every job it is sent with (value, error)."""

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

    def begin(self, job: Any) -> None:
        self.pipe.send(job)

    def answer(self) -> tuple[Any, str | None]:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return None, f"its process died with exit code {self.ended()}; out of memory?"

    def ended(self) -> int | None:
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


class _Program(_Worker):
    """Runs one job's command. A thread waits for its end, so that the queue can wait for all of its pipes together."""

    def __init__(self, command: Callable[[Any], Command]):
        self.command = command

    def begin(self, job: Any) -> None:
        command = self.command(job)
        with command.log.open("ab") as log:
            environment = {**os.environ, **ONE_THREAD}
            self.process: subprocess.Popen = subprocess.Popen(
                command.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.pipe, theirs = multiprocessing.Pipe(duplex=False)
        self.waiting = Thread(target=lambda: theirs.send(self.process.wait()), daemon=True)
        self.waiting.start()

    def answer(self) -> tuple[Any, str | None]:
        code = self.ended()
        return None, f"ended with exit code {code}" if code else None

    def ended(self) -> int | None:
        self.waiting.join()
        self.pipe.close()
        return self.process.returncode


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = (function(job), None)
        except Exception as error:  # whatever it is, it is this job's result
            answer = (None, " ".join(f"{type(error).__name__}: {error}".split()))
        pipe.send(answer)
