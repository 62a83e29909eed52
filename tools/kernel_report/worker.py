"""One job in a process of its own: `python -m hybridlm.tools.kernel_report.worker` reads a request from stdin as JSON.

Whether triton interprets kernels or compiles them is settled when they are decorated, and a library asks what GPU it
runs on when it is imported; so each kind of job, and each target, starts afresh. `ask` is the other end.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

CLEARED = ("TRITON_", "FLA_", "CUDA_", "TORCH_LOGS")


class WorkerFailed(RuntimeError):
    """A job's process ended without an answer; the message is the end of its stderr."""


def ask(job: str, **request: Any) -> Any:
    """Run one job and return its answer. Raises WorkerFailed."""
    interpret = {"TRITON_INTERPRET": "1"} if job == "count" else {}
    with tempfile.TemporaryDirectory(prefix="kernel-report-") as cache:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__],
            input=json.dumps({"job": job, **request}),
            capture_output=True,
            text=True,
            check=False,
            env=_environment(cache) | interpret,
        )
    if done.returncode:
        described = ", ".join(f"{name}={value}" for name, value in request.items())
        lines = done.stderr.strip().splitlines()
        raise WorkerFailed(
            f"job {job} ({described}) failed with exit code {done.returncode}:\n" + "\n".join(lines[-25:])
        )
    return json.loads(done.stdout)


def _environment(cache: str) -> dict[str, str]:
    """No setting of the caller's shell reaches the kernels, and nothing is taken from an earlier compilation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CLEARED)}
    return kept | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TRITON_ALWAYS_COMPILE": "1",
        "TRITON_CACHE_DIR": cache,
        "FLA_CACHE_RESULTS": "0",
    }


def main() -> None:
    request = json.load(sys.stdin)
    with _stdout_for_the_answer() as answer:
        json.dump(JOBS[request.pop("job")](**request), answer)


@contextlib.contextmanager
def _stdout_for_the_answer() -> Iterator[Any]:
    """Whatever compilers and libraries print goes to stderr instead."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        yield answer


Pairs = list[list[str]]  # [case, subject] each


def plan(pairs: Pairs, target: str, shapes: list[list[int]], compiled: bool) -> list[dict[str, Any]]:
    """Per pair the launches of [forward, backward] at each shape, the operator of each of our kernels, and if asked for
    the builds of the first shape's kernels for the target."""
    from .cases import CASES, Shape
    from .compile import compile_apart
    from .subjects import Subject, pretend

    gpu = pretend(target, shapes)
    result = []
    for case, subject in pairs:
        passes, n_builds = [], 0
        for shape in shapes:
            found = []
            for step in Subject(subject, case).passes(CASES[case].at(Shape(*shape)), "meta"):
                gpu.launches.clear()
                step()
                found.append([asdict(launch) for launch in gpu.launches])
            passes.append(found)
            n_builds = n_builds or len(gpu.compilers)
        builds = [asdict(compile_apart(compiler, gpu.target)) for compiler in gpu.compilers[: compiled * n_builds]]
        result.append({"launches": passes, "builds": builds})
        gpu.forget()
    return result


def registered() -> dict[str, str]:
    """Operator of each of our kernels, all operators' Triton modules imported."""
    from ...kernels.operator import OPERATORS
    from .cases import CASES
    from .subjects import pretend

    pretend("sm_90", [[1, 64, 1, 64, 64]])
    for case in CASES.values():
        _ = OPERATORS[case.op].backends["triton"].function  # imported to be asked for
    from ...kernels.shared.triton_common import KERNELS

    return KERNELS


def host(pairs: Pairs, target: str, repeats: int) -> list[dict[str, float]]:
    """Per pair microseconds of host time per call, every kernel cached and none launched; all take turns."""
    from .host import time_host

    return time_host([(case, subject) for case, subject in pairs], target, repeats)


def count(pairs: Pairs, target: str, head_dims: list[int], tokens: list[int], heads: int) -> list[list[Any]]:
    """Per pair and number of tokens the counts of one head's [forward, backward], with the blocks chosen for `heads`
    heads."""
    from .cases import Shape
    from .count import count as counting
    from .subjects import Subject, pretend

    pretend(target, [[1, 1, 1, *head_dims]], heads)
    result = []
    for case, subject in pairs:
        counted = []
        for T in tokens:
            shape = Shape(1, T, 1, *head_dims)
            passes = []
            for step in Subject(subject, case).passes(shape, "cpu"):
                with counting() as counts:
                    step()
                passes.append(asdict(counts))
            counted.append(passes)
        result.append(counted)
    return result


JOBS = {job.__name__: job for job in (plan, registered, host, count)}

if __name__ == "__main__":
    main()
