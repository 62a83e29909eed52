"""Host time of a call: everything between the call and the driver's launch function."""

import time
from collections.abc import Callable

from .cases import CASES, Shape
from .subjects import Subject, pretend

SMALL = Shape(B=1, T=64, H=1, K=64, V=64)  # the host's work does not depend on sizes


def time_host(pairs: list[tuple[str, str]], target: str, repeats: int) -> list[dict[str, float]]:
    """{"forward": us, "both": us} per (case, subject): the fastest of all repeats, made in turns on a busy machine."""
    gpu = pretend(target, [[SMALL.B, SMALL.T, SMALL.H, SMALL.K, SMALL.V]])
    steps: list[Callable[[], None]] = []
    for case, subject in pairs:
        forward, backward = Subject(subject, case).passes(CASES[case].at(SMALL), "cpu")
        steps += [forward, _in_turn(forward, backward)]
    for step in (*steps, *steps):  # fill the caches
        step()
    gpu.record = False
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for step, found in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step()
            found.append(time.perf_counter() - started)
    fastest = [1e6 * min(found) for found in seconds]
    return [{"forward": a, "both": b} for a, b in zip(fastest[::2], fastest[1::2], strict=True)]


def _in_turn(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both
