"""`hybridlm bench kernels`: every Triton kernel of this project, compiled, counted and bounded without a GPU."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ...lm.parts.errors import UserError
from . import budgets
from .cases import CASES, Case, Shape, check_covered
from .hardware import TARGETS
from .measure import measure
from .plot import plot
from .result import CaseResult, ratios
from .subjects import OURS
from .table import print_report
from .worker import ask

DEFAULT_TARGETS = ("sm_80", "sm_90")
DEFAULT_SHAPES = (Shape(1, 4096, 16), Shape(4, 4096, 64))
PLOT_DIMS = (16, 32, 64, 128, 256)


def report_kernels(
    ops: Sequence[str],
    targets: Sequence[str],
    with_peers: bool,
    head_dims: Sequence[int],
    json_file: Path | None,
    plot_file: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Print the tables at the default shapes; returns what the JSON file holds.

    head_dims: for the plot and the JSON's sweep. Raises UserError on an unknown operator or target, ValueError if a
    Triton operator has no case.
    """
    cases = choose_cases(ops)
    _check_targets(targets)
    with console.status("compiling, interpreting, timing the host ..."):
        results = measure(cases, DEFAULT_SHAPES, with_peers=with_peers, build_for=targets)
    if not ops:
        check_launched(results)
    print_report(results, console)
    sweep = _sweep(cases, with_peers, head_dims, console) if head_dims else {}
    if plot_file:
        plot(sweep, plot_file)
    answer = {
        "results": [result.to_json() for result in results],
        "ratios": _all_ratios(results),
        "sweep": {dim: [result.to_json() for result in found] for dim, found in sweep.items()},
    }
    if json_file:
        json_file.write_text(json.dumps(answer, indent=1))
    return answer


def check_budgets(console: Console, recorded: bool) -> bool:
    """Hold our kernels on sm_80 and sm_90 against the recorded budgets, or record them. True if all is well."""
    check_covered()
    results = measure(CASES.values(), DEFAULT_SHAPES[:1], with_peers=False, build_for=DEFAULT_TARGETS, host_repeats=0)
    check_launched(results)
    if recorded:
        budgets.save(results)
        console.print(f"recorded {budgets.BUDGETS}", highlight=False)
        return True
    problems = budgets.exceeded(results, budgets.load())
    for problem in problems:
        console.print(problem, style="red", highlight=False)
    if not problems:
        console.print(f"{len(CASES)} cases within budget on {', '.join(DEFAULT_TARGETS)}")
    return not problems


def check_launched(results: list[CaseResult]) -> None:
    """Raises ValueError naming the registered kernels that no case launches; `results`: of all cases."""
    launched = {kernel.name for result in results for kernel in result.kernels}
    missing = {name: op for name, op in ask("registered").items() if name not in launched}
    if missing:
        named = ", ".join(f"{name} of {op}" for name, op in missing.items())
        raise ValueError(f"no case launches {named}; add one that does to CASES in tools/kernel_report/cases.py")


def choose_cases(ops: Sequence[str]) -> list[Case]:
    """The cases of these operators, all if none is named. Raises UserError naming an operator without a case."""
    check_covered()
    known = {case.op for case in CASES.values()}
    for op in ops:
        if op not in known:
            raise UserError(
                f"--op is {op!r}; allowed: {', '.join(sorted(known))}; add a case to tools/kernel_report/cases.py"
            )
    return [case for case in CASES.values() if not ops or case.op in ops]


def _check_targets(targets: Sequence[str]) -> None:
    for target in targets:
        if target not in TARGETS:
            raise UserError(f"--targets has {target!r}; allowed: {', '.join(TARGETS)}")


def _sweep(
    cases: Sequence[Case], with_peers: bool, head_dims: Sequence[int], console: Console
) -> dict[int, list[CaseResult]]:
    """Counts and bounds of one device at K = V = each head dim."""
    found = {}
    trained = [case for case in cases if not case.step and case.op != "gated_scan"]  # which has channels, no heads
    for dim in head_dims:
        with console.status(f"head dim {dim} ..."):
            shapes = [replace(DEFAULT_SHAPES[-1], K=dim, V=dim)]
            found[dim] = measure(trained, shapes, with_peers=with_peers, count_for=["sm_90"], host_repeats=0)
    return found


def _all_ratios(results: list[CaseResult]) -> list[dict[str, Any]]:
    return [
        {"case": ours.case, "target": ours.target, "shape": str(ours.shape), "peer": peer.subject, **ratios(ours, peer)}
        for ours in results
        for peer in results
        if ours.subject == OURS != peer.subject
        and ours.device
        and (ours.case, ours.target, ours.shape) == (peer.case, peer.target, peer.shape)
    ]
