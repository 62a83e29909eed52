"""Recorded limits of our kernels at the default configuration: K = V = 128, bfloat16, chunks of 64."""

import json
from pathlib import Path
from typing import Any

from .cases import CASES
from .ideal import ALLOWED
from .result import PASSES, CaseResult

BUDGETS = Path(__file__).with_name("budgets.json")
TOLERANCE = 1.01
MAX_LAUNCHES = 6  # forward and backward
NO_SPILLS = ("sm_90",)


def record(results: list[CaseResult]) -> dict[str, Any]:
    """Per case and target: launches, bytes, and what every kernel moves, takes and spills, as `exceeded` wants them.

    A kernel that is launched more than once is entered with the largest of each.
    """
    budgets: dict[str, Any] = {}
    for result in results:
        kernels: dict[str, dict[str, float]] = {}
        for kernel in result.kernels:
            assert kernel.build is not None
            found = {
                "bytes": round(kernel.unique / result.tokens, 2),
                "registers": kernel.build.registers,
                "shared": kernel.build.shared,
                "spills": kernel.build.spill_bytes,
            }
            entry = kernels.setdefault(kernel.name, found)
            entry.update({name: max(entry[name], value) for name, value in found.items()})
        budgets.setdefault(result.case, {})[result.target] = {
            "launches": sum(result.launches),
            "bytes": round(sum(result.bytes), 2),
            "kernels": kernels,
        }
    return budgets


def load() -> dict[str, Any]:
    return json.loads(BUDGETS.read_text())


def save(results: list[CaseResult]) -> None:
    BUDGETS.write_text(json.dumps(record(results), indent=1, sort_keys=True) + "\n")


def exceeded(results: list[CaseResult], budgets: dict[str, Any]) -> list[str]:
    """One line per broken limit: the recorded ones, no failed build, at most MAX_LAUNCHES, no spills on NO_SPILLS."""
    problems = []
    for result in results:
        where = f"{result.case}, {result.target}"
        for kernel in result.kernels:
            build = kernel.build
            if build is None or build.error:
                problems.append(f"{where}, {kernel.name}: {build.error if build else 'not built'}")
            elif build.blocks == 0:
                problems.append(f"{where}, {kernel.name}: {build.shared} bytes of shared memory do not fit a block")
            elif build.spill_bytes and result.target in NO_SPILLS:
                problems.append(f"{where}, {kernel.name}: spills {build.spill_bytes} bytes of registers; allowed: 0")
        problems += _above_ideal(where, result)
        if sum(result.launches) > MAX_LAUNCHES:
            problems.append(f"{where}: {sum(result.launches)} launches; allowed: {MAX_LAUNCHES}")
        found = record([result])[result.case][result.target]
        problems += _above(where, found, budgets.get(result.case, {}).get(result.target))
    return problems


def _above_ideal(where: str, result: CaseResult) -> list[str]:
    ideal = CASES[result.case].ideal
    pairs = zip(PASSES, result.bytes, ideal(result.shape).bytes, strict=True) if ideal else ()
    return [
        f"{where}, {name}: {found:.0f} bytes; allowed: {ALLOWED} times the ideal {least:.0f}"
        for name, found, least in pairs
        if found > ALLOWED * least
    ]


def _above(where: str, found: dict[str, Any], budget: dict[str, Any] | None) -> list[str]:
    if budget is None:
        return [f"{where}: no budget; record it with `hybridlm bench kernels --record`"]
    problems = [
        f"{where}: {name} {found[name]}; recorded: {budget[name]}"
        for name in ("launches", "bytes")
        if found[name] > TOLERANCE * budget[name]
    ]
    for kernel, values in found["kernels"].items():
        recorded = budget["kernels"].get(kernel)
        if recorded is None:
            problems.append(f"{where}, {kernel}: no budget; record it with `hybridlm bench kernels --record`")
            continue
        problems += [
            f"{where}, {kernel}: {name} {value}; recorded: {recorded[name]}"
            for name, value in values.items()
            if value > TOLERANCE * recorded[name]
        ]
    return problems
