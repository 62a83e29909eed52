"""Sends the jobs to worker processes and joins their answers."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

from ...kernels.shared.devices import Device
from .cases import CASES, Case, Shape
from .compile import Build
from .hardware import BOUND_ON
from .result import PASSES, CaseResult, KernelLaunch, Pass, tiles
from .roofline import bounds, continued, extrapolate
from .subjects import OURS
from .worker import ask

TOKENS = (128, 256)  # multiples of every chunk length in use
QUADRATIC_TOKENS = (256, 512, 768)  # of attention's tiles, of which every second token has a row
HOST_TARGET = "sm_90"

Pair = tuple[str, str]  # case, subject
Submit = Callable[..., Future[list[Any]]]


def measure(
    cases: Iterable[Case],
    shapes: Sequence[Shape],
    *,
    with_peers: bool = True,
    build_for: Iterable[str] = (),
    count_for: Iterable[str] = tuple(BOUND_ON),
    host_repeats: int = 200,
) -> list[CaseResult]:
    """Every case's subjects on every target at every shape; kernels are built at the first one. Shapes share K and V.

    build_for: targets to compile for. count_for: targets of devices to bound times on. host_repeats: 0 leaves host
    times out. Raises WorkerFailed with what a failed worker had to say.
    """
    ours = [(case.name, OURS) for case in cases]
    peers = [(case, peer) for case, _ in ours for peer in CASES[case].peers] if with_peers else []
    sides = [side for side in (ours, peers) if side]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:

        def submit(job: str, pairs: list[Pair], **request: Any) -> Future[list[Any]]:
            return pool.submit(ask, job, pairs=pairs, **request)

        plans = _plan(submit, sides, shapes, set(build_for), set(count_for))
        counts = _Counts(submit, {key: plan for key, plan in plans.items() if key[1] in count_for}, shapes)
        results = [
            _result(pair, target, plan, i, CASES[pair[0]].at(shape), counts.of(pair, target, i))
            for (pair, target), plan in plans.items()
            for i, shape in enumerate(shapes)
        ]
    if host_repeats:  # by itself, it is the only thing timed
        answer = ask("host", pairs=ours + peers, target=HOST_TARGET, repeats=host_repeats)
        times = dict(zip(ours + peers, answer, strict=True))
        for result in results:
            result.host_us = times[result.case, result.subject]
    return results


def _plan(
    submit: Submit, sides: list[list[Pair]], shapes: Sequence[Shape], build_for: set[str], count_for: set[str]
) -> dict[tuple[Pair, str], Any]:
    futures = {
        (i, target): submit(
            "plan", side, target=target, shapes=[astuple(s) for s in shapes], compiled=target in build_for
        )
        for target in sorted(build_for | count_for)
        for i, side in enumerate(sides)
    }
    return {
        (pair, target): plan
        for (i, target), future in futures.items()
        for pair, plan in zip(sides[i], future.result(), strict=True)
    }


class _Counts:
    """Counts for every target and shape; made anew only where other blocks are chosen there."""

    def __init__(self, submit: Submit, plans: dict[tuple[Pair, str], Any], shapes: Sequence[Shape]) -> None:
        self.chosen: dict[tuple[Pair, str, int], tuple] = {}
        known: dict[tuple[Pair, str], tuple] = {}
        for (pair, target), plan in plans.items():
            for i, (passes, shape) in enumerate(zip(plan["launches"], shapes, strict=True)):
                at = CASES[pair[0]].at(shape)
                tokens = _tokens(pair, at)
                blocks = str([tokens, [[(x["kernel"], tiles(x)) for x in launches] for launches in passes]])
                key = (target, at.B * at.H, tokens, pair[1] == OURS)
                self.chosen[pair, target, i] = known.setdefault((pair, blocks), key)
        groups: dict[tuple, list[Pair]] = {}
        for (pair, _), key in known.items():
            groups.setdefault(key, []).append(pair)
        futures = {
            key: submit(
                "count", pairs, target=key[0], heads=key[1], head_dims=[shapes[0].K, shapes[0].V], tokens=key[2]
            )
            for key, pairs in groups.items()
        }
        self.counted = {
            (pair, key): counted
            for key, future in futures.items()
            for pair, counted in zip(groups[key], future.result(), strict=True)
        }

    def of(self, pair: Pair, target: str, shape: int) -> list[Any] | None:
        """`count.Counts` of both passes at each number of tokens; None for a target without a device."""
        key = self.chosen.get((pair, target, shape))
        if key is None:
            return None
        return self.counted[pair, key]


def _result(pair: Pair, target: str, plan: dict[str, Any], i: int, shape: Shape, counted: list | None) -> CaseResult:
    """At shape number `i`; builds are those of the first."""
    passes = []
    result = CaseResult(*pair, target, shape, passes)
    for step in range(len(PASSES)):
        launches = plan["launches"][i][step]
        kernels = []
        for launch in launches:
            programs = launch["grid"][0] * launch["grid"][1] * launch["grid"][2]
            build = Build(**plan["builds"][launch["build"]]) if plan["builds"] and i == 0 else None
            kernels.append(KernelLaunch(launch["kernel"], tiles(launch), programs, build, None, {}))
        passes.append(Pass(kernels, {}, 0.0))
        if counted and result.device:
            of_step = [passes[step] for passes in counted]
            _check_same(pair, shape, launches, *(count["launches"] for count in of_step))
            _add_work(passes[-1], of_step, _tokens(pair, shape), shape, result.device)
    return result


def _add_work(step: Pass, counts: list[dict], tokens: tuple[int, ...], shape: Shape, device: Device) -> None:
    heads = shape.B * shape.H
    for kernel, *launches in zip(step.kernels, *(count["launches"] for count in counts), strict=True):
        kernel.work = extrapolate(launches, tokens, shape.T, heads)
        kernel.seconds = bounds(kernel.work, device, kernel.programs)
    step.torch_ops = {name: calls for name, (calls, _) in counts[-1]["torch_ops"].items()}
    moved = [sum(moved for _, moved in count["torch_ops"].values()) for count in counts]
    step.torch_bytes = heads * continued(moved, tokens, shape.T)


def _check_same(pair: Pair, shape: Shape, launches: list[dict], *counted: list[dict]) -> None:
    """The interpreter must have run the kernels of the plan, with their blocks."""
    expected = [(x["kernel"], tiles(x)) for x in launches]
    for found in counted:
        ran = [(x["kernel"], tiles(x)) for x in found]
        if ran != expected:
            raise RuntimeError(
                f"{pair[1]}, {pair[0]} at {shape}: the interpreter ran {ran}, the compiled host code {expected}; the "
                "counts would be of other kernels"
            )


def _tokens(pair: Pair, shape: Shape) -> tuple[int, ...]:
    """Where to count: at a few T, from which to go on, or at the shape's own where that would not be exact."""
    as_it_is = shape.T == 1 or (pair[1] == OURS and CASES[pair[0]].cut_by_length)
    return (shape.T,) if as_it_is else QUADRATIC_TOKENS if CASES[pair[0]].quadratic else TOKENS
