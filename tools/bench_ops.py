"""Speed of the operators on this machine's CPU: every backend that runs here, beside a peer in plain PyTorch.

All sides of a comparison run in one process, in turn, so that a busy machine slows them alike: a row shows each side's
fastest run and the median of the paired ratios. The share of the peak counts the recurrence's own products (6 K V FLOPs
per token and head for the gated delta rule, 4 K V for gated linear attention, a backward pass twice that; of attention
the active pairs') against the machine's torch.mm, measured in the same thread setting and dtype; what a backend
multiplies beyond them is its cost.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..lm.parts.terminal import PlainConsole
from .bench_cases import CASES, BenchCase, Inputs

SWEEP = (512, 1024, 2048, 4096, 8192, 16384, 32768)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUDGET = 8.0  # seconds for a comparison whose sides are slow; at least three rounds


@dataclass(frozen=True)
class Row:
    """One backend beside the peer; times are the fastest run in milliseconds, the ratio is peer / backend."""

    op: str
    shape: str
    dtype: str
    threads: int
    backward: bool
    backend: str
    peer: str
    ms: float
    peer_ms: float
    ratio_median: float
    ratio_low: float  # 10th and 90th percentile of the paired ratios
    ratio_high: float
    peak_share: float | None  # None: the operator has no matmul
    us_per_token: float


@dataclass(frozen=True)
class Length:
    """Forward and backward of the fastest backend at one sequence length."""

    op: str
    backend: str
    dtype: str
    threads: int
    T: int
    ms: float
    us_per_token: float
    to_first: float  # cost per token over that of the shortest, median of the paired rounds


def bench_ops(
    threads: tuple[int, ...] = (1, 2),
    repeats: int = 30,
    sweep: tuple[int, ...] = SWEEP,
    chunk_size: int = 64,
    only: str = "",
    console: Console | None = None,
) -> dict[str, list[dict]]:
    """Measure the operators whose names begin with `only`, and print.

    Returns {"peak": GFLOP/s of torch.mm, "rows": comparisons, "sweep": cost per token over T}.
    """
    console = console or PlainConsole()
    cases = [case for case in CASES if case.name.startswith(only)]
    swept = sweep and CASES[0] in cases
    result: dict[str, list[dict]] = {"peak": [], "rows": [], "sweep": []}
    for n in threads:
        with _threads(n):
            peaks = {name: _mm_peak(dtype) for name, dtype in DTYPES.items()}
            result["peak"] += [{"threads": n, "dtype": name, "gflops": x / 1e9} for name, x in peaks.items()]
            for name, x in peaks.items():
                console.print(f"torch.mm 2048^3, {name}, {n} threads: {x / 1e9:.0f} GFLOP/s", highlight=False)
            for case in cases:
                for shape in case.shapes:
                    for dtype in DTYPES:
                        rows = list(_compare(case, shape, dtype, n, peaks[dtype], repeats, chunk_size))
                        _print_rows(rows, console)
                        result["rows"] += map(asdict, rows)
            lengths = _sweep(CASES[0], sweep, n, max(3, repeats // 4), chunk_size) if swept else []
            _print_lengths(lengths, console)
            result["sweep"] += map(asdict, lengths)
    return result


def _compare(
    case: BenchCase, shape_name: str, dtype: str, threads: int, peak: float, repeats: int, chunk_size: int
) -> Iterator[Row]:
    shape = case.shapes[shape_name]
    inputs = case.make(shape, DTYPES[dtype])
    backends = case.backends()
    ops = [case.call(inputs, backend, chunk_size) for backend in backends] + [case.call_peer(inputs)]
    for backward in (False, True):
        *ours, peer = _alternate(_calls(ops, inputs, backward), repeats)
        for backend, seconds in zip(backends, ours, strict=True):
            ratios = sorted(b / a for a, b in zip(seconds, peer, strict=True))
            flops = case.flops(shape, backward)
            yield Row(
                op=case.name,
                shape=shape_name,
                dtype=dtype,
                threads=threads,
                backward=backward,
                backend=backend,
                peer=case.peer_name,
                ms=min(seconds) * 1e3,
                peer_ms=min(peer) * 1e3,
                ratio_median=statistics.median(ratios),
                ratio_low=ratios[len(ratios) // 10],
                ratio_high=ratios[-1 - len(ratios) // 10],
                peak_share=flops / min(seconds) / peak if flops else None,
                us_per_token=min(seconds) * 1e6 / (shape[0] * shape[1]),
            )


def _sweep(case: BenchCase, sweep: Sequence[int], threads: int, repeats: int, chunk_size: int) -> list[Length]:
    """Every length in turn in each round, short ones several times over, so that all see the same machine."""
    backend = case.backends()[-1]
    times: dict[int, list[float]] = {T: [] for T in sweep}
    calls = {}
    for T in sweep:
        inputs = case.make((1, T, 4, 64, 64), torch.float32)
        (calls[T],) = _calls([case.call(inputs, backend, chunk_size)], inputs, backward=True)
        calls[T]()
    for _ in range(repeats):
        for T, call in calls.items():
            times[T].append(min(_seconds(call) for _ in range(max(1, min(8, max(sweep) // (4 * T))))))
    return [
        Length(
            op=case.name,
            backend=backend,
            dtype="float32",
            threads=threads,
            T=T,
            ms=min(seconds) * 1e3,
            us_per_token=min(seconds) * 1e6 / T,
            to_first=statistics.median(a * sweep[0] / (b * T) for a, b in zip(seconds, times[sweep[0]], strict=True)),
        )
        for T, seconds in times.items()
    ]


def _calls(ops: list[Callable[[], Tensor]], inputs: Inputs, backward: bool) -> list[Callable[[], object]]:
    if not backward:
        return [torch.no_grad()(op) for op in ops]
    with torch.no_grad():
        cotangents = [torch.randn_like(op()) for op in ops]
    return [  # a peer may leave an input unused
        lambda op=op, do=do: torch.autograd.grad(op(), inputs, do, allow_unused=True)
        for op, do in zip(ops, cotangents, strict=True)
    ]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _alternate(calls: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Times of `repeats` rounds, or of fewer, at least three, once they have taken BUDGET seconds."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + BUDGET
    for round_ in range(repeats):
        if round_ >= 3 and time.perf_counter() > end:
            break
        for call, seconds in zip(calls, times, strict=True):
            seconds.append(_seconds(call))
    return times


def _mm_peak(dtype: torch.dtype, n: int = 2048) -> float:
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    (seconds,) = _alternate([lambda: torch.mm(a, b)], 8)
    return 2 * n**3 / min(seconds)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _print_rows(rows: list[Row], console: Console) -> None:
    first = rows[0]
    console.print(f"\n{first.op}\n{first.shape}, {first.dtype}, threads: {first.threads}", highlight=False)
    table = Table("pass", "backend", box=None)
    for column in ("ms", f"{first.peer} ms", "ratio (10-90 %)", "of peak", "us/token"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            "fwd+bwd" if row.backward else "fwd",
            row.backend,
            f"{row.ms:.2f}",
            f"{row.peer_ms:.2f}",
            f"{row.ratio_median:.2f} ({row.ratio_low:.1f}-{row.ratio_high:.1f})",
            "-" if row.peak_share is None else f"{row.peak_share:.0%}",
            f"{row.us_per_token:.2f}",
        )
    console.print(table)


def _print_lengths(lengths: list[Length], console: Console) -> None:
    if not lengths:
        return
    first = lengths[0]
    setting = f"H=4, K=V=64, {first.dtype}, threads: {first.threads}, {first.backend}, fwd+bwd"
    console.print(f"\n{first.op} over T\n{setting}", highlight=False)
    table = Table(box=None)
    for column in ("T", "ms", "us/token", f"to T={first.T}"):
        table.add_column(column, justify="right")
    for row in lengths:
        table.add_row(str(row.T), f"{row.ms:.2f}", f"{row.us_per_token:.2f}", f"{row.to_first:.2f}")
    console.print(table)
