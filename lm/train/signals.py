"""SIGTERM and SIGINT end a run at a step's boundary, on all ranks at once, so that the state can be saved."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from ..parts.errors import Interrupted
from .faults import together

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TWICE = 2.0  # seconds in which a second signal counts as the first: a launcher passes on what the terminal has sent


class Signals:
    """While it is entered, the first signal is noted and a second one ends the process at once.

    A thread waits for them: the main thread may be within a collective that does not return.
    """

    def __init__(self, speaks: bool = True):
        self.speaks, self.first, self._since = speaks, 0, 0.0

    def __enter__(self) -> "Signals":
        self._here = threading.current_thread() is threading.main_thread()
        if not self._here:
            return self  # only the main thread may ask for signals
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._handlers = [signal.signal(one, lambda *_: None) for one in SIGNALS]
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._here:
            return
        for one, handler in zip(SIGNALS, self._handlers, strict=True):
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._fd)
        self._write.close()
        if self.first and kind is None:
            signal.raise_signal(self.first)  # it came after the last step: no rank has acted on it

    def noted(self) -> list[float]:
        """For each of SIGNALS 1 if this process was sent it first, else 0; to be summed over ranks."""
        return [float(one == self.first) for one in SIGNALS]

    def _watch(self) -> None:
        while received := self._read.recv(1):
            self._take(received[0])
        self._read.close()

    def _take(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if not self.first:
            self.first, self._since = number, time.monotonic()
            self._say(f"{signal.Signals(number).name}: finishing this step, then saving; once more ends at once")
        elif time.monotonic() - self._since > TWICE:
            self._say("ended at once; nothing saved since the newest checkpoint")
            os._exit(128 + number)

    def _say(self, text: str) -> None:
        if self.speaks:
            with suppress(OSError):
                print(f"hybridlm: {text}", file=sys.stderr, flush=True)


def agreed(counts: list[float]) -> int:
    """The signal that some rank was sent, from `noted` summed over ranks; 0 for none."""
    return next((one for one, count in zip(SIGNALS, counts, strict=True) if count), 0)


def end(number: int, step: int, kept: str) -> NoReturn:
    """Raise Interrupted on every rank; its code is what a shell gives for the signal."""
    name = signal.Signals(number).name
    with together():
        raise Interrupted(f"{name} after step {step}: {kept}; the same command goes on from there", 128 + number)
    raise AssertionError  # unreachable
