"""The report as tables that fit 80 columns: per case code and work, launch by launch; then the comparisons."""

from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .cases import CASES, Shape
from .result import PASSES, CaseResult, KernelLaunch, ratios
from .subjects import OURS


def print_report(results: list[CaseResult], console: Console) -> None:
    bounded = [r for r in results if r.device]
    for found in _grouped(results):
        if any(kernel.build for r in found for kernel in r.kernels):
            console.print(code_table(found))
        if found[0].device:
            console.print(work_table(found))
            if CASES[found[0].case].ideal:
                console.print(ideal_table(found[0]))
    for case, subject in dict.fromkeys((r.case, r.subject) for r in bounded if r.subject != OURS):
        ours = [r for r in bounded if (r.case, r.subject) == (case, OURS)]
        console.print(comparison_table(ours, [r for r in bounded if (r.case, r.subject) == (case, subject)]))


def _grouped(results: list[CaseResult]) -> list[list[CaseResult]]:
    """The subjects of each case, target and shape."""
    groups: dict[tuple, list[CaseResult]] = {}
    for case in dict.fromkeys(r.case for r in results):
        for result in results:
            if result.case == case:
                groups.setdefault((case, result.target, result.shape), []).append(result)
    return list(groups.values())


def code_table(results: list[CaseResult]) -> Table:
    """What the compiler made of each launch, for one case and target."""
    table = _table(f"{results[0].case}: code for {results[0].target}")
    for column in ("regs", "spill", "shared", "blocks", "warps", "matrix", "SASS", "s"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(Text(result.subject, "bold"))
        for kernel in result.kernels:
            if kernel.build:
                table.add_row(_label(kernel), *_code(kernel))
    return table


def _code(kernel: KernelLaunch) -> Iterator[str | Text]:
    build = kernel.build
    assert build is not None
    yield str(build.registers)
    yield Text(str(build.spill_bytes), "red") if build.spill_bytes else "0"
    yield str(build.shared)
    yield str(build.blocks) if build.blocks else Text("0", "red")
    yield str(build.warps)
    yield Text(build.error, "red") if build.error else build.matrix_instructions
    yield str(build.size)
    yield f"{build.seconds:.1f}"


def work_table(results: list[CaseResult]) -> Table:
    """Programs, bytes and FLOPs of each launch, and the bound on its time with what sets it."""
    first = results[0]
    device = first.device.name if first.device else ""
    table = _table(f"{first.case}: work per {_unit(first)}, bound on {device} at {first.shape}")
    for column in ("programs", "read B", "write B", "L2 B", "kFLOP", "us >="):
        table.add_column(column, justify="right")
    for result in results:
        for name, step in zip(PASSES, result.passes, strict=True):
            if step.kernels:
                table.add_row(Text.assemble((result.subject, "bold"), f", {name}"))
            for kernel in step.kernels:
                table.add_row(_label(kernel), str(kernel.programs), *_work(kernel, result.tokens))
            if step.torch_ops and result.device:
                calls = f"  {sum(step.torch_ops.values())} PyTorch operations"
                time = f"{1e6 * step.torch_bytes / result.device.hbm:.1f} hbm"
                table.add_row(calls, "", f"{step.torch_bytes / result.tokens:.0f}", "", "", "", time)
    return table


def _work(kernel: KernelLaunch, tokens: int) -> Iterator[str]:
    work = kernel.work
    assert work is not None
    for moved in (work.read, work.written, work.through_l2):
        yield f"{moved / tokens:.0f}"
    yield f"{sum(work.flops.values()) / tokens / 1e3:.1f}"
    yield f"{1e6 * kernel.bound:.1f} {kernel.limit}"


def ideal_table(ours: CaseResult) -> Table:
    """Counted bytes and FLOPs beside what the case cannot do without."""
    ideal = CASES[ours.case].ideal
    assert ideal is not None
    least = ideal(ours.shape)
    table = _table(f"{ours.case}: beside the ideal at {ours.shape}", f"per {_unit(ours)}")
    for column in (OURS, "ideal", "ratio"):
        table.add_column(column, justify="right")
    for what, unit, found, wanted in (("bytes", 1, ours.bytes, least.bytes), ("kFLOP", 1e3, ours.flops, least.flops)):
        for name, a, b in zip(PASSES, found, wanted, strict=True):
            if b:
                table.add_row(f"{what}, {name}", f"{a / unit:.0f}", f"{b / unit:.0f}", Text(f"{a / b:.2f}", "bold"))
    return table


def comparison_table(ours: list[CaseResult], peer: list[CaseResult]) -> Table:
    """Ours, a peer and the ratio ours / peer, by target and shape where that matters. Both lists in one order."""
    table = _table(f"{ours[0].case}: {OURS} beside flash-linear-attention", f"per {_unit(ours[0])}")
    for column in (OURS, peer[0].subject, "ratio"):
        table.add_column(column, justify="right")
    for i, key, label, cell in _rows(ours):
        ratio = ratios(ours[i], peer[i]).get(key)
        shown = "" if ratio is None else Text(f"{ratio:.2f}", "bold")
        table.add_row(label, cell(ours[i]), cell(peer[i]), shown)
    return table


def _rows(ours: list[CaseResult]) -> Iterator[tuple[int, str, str, Callable[[CaseResult], str]]]:
    """Index of the result, name of the ratio, label, and the text of one result."""
    for i, result in enumerate(ours):
        if result.target != ours[-1].target:  # bytes and launches hardly differ between targets
            continue
        at = f" {_short(result.shape)}"
        yield i, "bytes, forward", "bytes, forward" + at, lambda r: f"{r.bytes[0]:.0f}"
        if result.launches[1]:
            yield i, "bytes, backward", "bytes, backward" + at, lambda r: f"{r.bytes[1]:.0f}"
            yield i, "bytes", "bytes" + at, lambda r: f"{sum(r.bytes):.0f}"
        yield i, "bytes with PyTorch's", "  and PyTorch's", lambda r: f"{sum(r.bytes + r.torch_bytes):.0f}"
        yield i, "FLOPs", "kFLOP" + at, lambda r: f"{sum(r.flops) / 1e3:.0f}"
        yield i, "launches", "launches" + at, lambda r: _sum(r.launches)
    yield -1, "", "PyTorch operations", lambda r: _sum(r.torch_calls)
    if ours[-1].host_us:
        yield -1, "host time, forward", "host us, forward", lambda r: f"{r.host_us['forward']:.0f}"
        if ours[-1].launches[1]:
            yield -1, "host time", "host us, both", lambda r: f"{r.host_us['both']:.0f}"
    for i, result in enumerate(ours):
        device = result.device.name if result.device else ""
        yield i, "bound", f"{device} us >= {_short(result.shape)}", lambda r: _sum([f"{x:.1f}" for x in r.bound_us])


def _table(title: str, first: str = "kernel") -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, min_width=20, overflow="fold")
    return table


def _sum(passes: list[Any]) -> str:
    """Forward + backward; a pass without launches is left out."""
    return " + ".join(str(x) for x in passes if x not in (0, "0.0")) or "0"


def _unit(result: CaseResult) -> str:
    return "head" if result.shape.T == 1 else "token and head"


def _short(shape: Shape) -> str:
    return f"{shape.B}x{shape.T}x{shape.H}"


def _label(kernel: KernelLaunch) -> str:
    tiles = " ".join(f"{name}{size}" for name, size in kernel.tiles.items())
    return f"  {kernel.name} {tiles}"
