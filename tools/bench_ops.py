"""Speed of the operators on this machine's CPU, beside the PyTorch fallback that transformers ships.

Both sides run in one process, alternating, so that a busy machine slows both: a row shows each side's fastest run and
the median of the paired ratios. Throughput counts the matmul FLOPs that are executed, as a share of the machine's own
torch.mm peak measured in the same thread setting.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..kernels import gated_delta_rule

SHAPES = {  # name: B, T, H, K, V
    "T=1024, H=4, K=V=64": (1, 1024, 4, 64, 64),
    "8 x 512, H=4, K=48, V=96": (8, 512, 4, 48, 96),
}
SWEEP = (512, 1024, 2048, 4096, 8192)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One comparison; times are the fastest run in milliseconds, the ratio is peer / ours."""

    shape: str
    dtype: str
    threads: int
    backward: bool
    ours_ms: float
    peer_ms: float
    ratio_median: float
    ratio_low: float  # 10th and 90th percentile of the paired ratios
    ratio_high: float
    peak_share: float  # executed matmul FLOP/s over the measured torch.mm peak of the same dtype
    us_per_token: float


def bench_ops(
    threads: tuple[int, ...] = (1, 2),
    repeats: int = 30,
    sweep: tuple[int, ...] = SWEEP,
    chunk_size: int = 64,
    console: Console | None = None,
) -> dict[str, list[dict]]:
    """Measure and print. Returns {"peak": GFLOP/s of torch.mm, "rows": comparisons, "sweep": cost per token over T}."""
    console = console or Console()
    result: dict[str, list[dict]] = {"peak": [], "rows": [], "sweep": []}
    for n in threads:
        with _threads(n):
            peak = {name: _mm_peak(dtype) for name, dtype in DTYPES.items()}
            result["peak"] += [{"threads": n, "dtype": name, "gflops": x / 1e9} for name, x in peak.items()]
            for name, shape in SHAPES.items():
                for dtype in DTYPES:
                    result["rows"] += _compare(name, shape, dtype, n, peak[dtype], repeats, chunk_size)
            for T in sweep:
                name, shape, fewer = f"T={T}, H=4, K=V=64", (1, T, 4, 64, 64), repeats // 4
                result["sweep"] += _compare(name, shape, "float32", n, peak["float32"], fewer, chunk_size)
    _print(result, console)
    return result


def transformers_fallback() -> Callable[..., tuple[Tensor, Tensor | None]]:
    """torch_chunk_gated_delta_rule of transformers; with fla installed the public name is a Triton op instead."""
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    return getattr(module.torch_chunk_gated_delta_rule, "__wrapped__", module.torch_chunk_gated_delta_rule)


def _compare(
    name: str, shape: tuple[int, ...], dtype: str, threads: int, peak: float, repeats: int, chunk_size: int
) -> Iterator[dict]:
    inputs = _inputs(shape, DTYPES[dtype])
    peer_op = transformers_fallback()
    ops = (
        lambda: gated_delta_rule(*inputs, chunk_size=chunk_size, output_final_state=True)[0],
        lambda: peer_op(*inputs, output_final_state=True)[0],
    )
    do = torch.randn_like(inputs[2])
    for backward in (False, True):
        calls = [_step(op, inputs, do) if backward else torch.no_grad()(op) for op in ops]
        with FlopCounterMode(display=False) as counter:
            calls[0]()
        ours, peer = _alternate(calls, max(2, repeats))
        ratios = sorted(b / a for a, b in zip(ours, peer, strict=True))
        row = Row(
            shape=name,
            dtype=dtype,
            threads=threads,
            backward=backward,
            ours_ms=min(ours) * 1e3,
            peer_ms=min(peer) * 1e3,
            ratio_median=statistics.median(ratios),
            ratio_low=ratios[len(ratios) // 10],
            ratio_high=ratios[-1 - len(ratios) // 10],
            peak_share=counter.get_total_flops() / min(ours) / peak,
            us_per_token=min(ours) * 1e6 / (shape[0] * shape[1]),
        )
        yield asdict(row)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    B, T, H, K, V = shape
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(B, T, H, K), dim=-1).to(dtype) for _ in range(2))
    v = torch.randn(B, T, H, V).to(dtype)
    g, beta = F.logsigmoid(torch.randn(B, T, H) + 3), torch.rand(B, T, H)
    return [x.requires_grad_() for x in (q, k, v, g, beta)]


def _step(op: Callable[[], Tensor], inputs: list[Tensor], do: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(op(), inputs, do)


def _alternate(calls: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
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


def _print(result: dict[str, list[dict]], console: Console) -> None:
    for peak in result["peak"]:
        console.print(f"torch.mm 2048^3 {peak['dtype']}, {peak['threads']} threads: {peak['gflops']:.0f} GFLOP/s")
    columns = (
        "shape",
        "dtype",
        "threads",
        "pass",
        "ours ms",
        "transformers ms",
        "ratio (10-90 %)",
        "of peak",
        "us/token",
    )
    table = Table(*columns, title="gated_delta_rule: fastest run, median paired ratio")
    for row in result["rows"] + result["sweep"]:
        table.add_row(
            row["shape"],
            row["dtype"],
            str(row["threads"]),
            "fwd + bwd" if row["backward"] else "fwd",
            f"{row['ours_ms']:.2f}",
            f"{row['peer_ms']:.2f}",
            f"{row['ratio_median']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})",
            f"{row['peak_share']:.0%}",
            f"{row['us_per_token']:.2f}",
        )
    console.print(table)
