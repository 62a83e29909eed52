"""One kernel, compiled ahead of time: registers, spills, shared memory, occupancy, instructions, or the error."""

import contextlib
import io
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from .hardware import Target, occupancy

# the tensor-core instructions of Ampere, Hopper, Blackwell; then what surrounds them
INSTRUCTIONS = {
    "HMMA": r"\bHMMA",
    "HGMMA": r"\bHGMMA",
    "UTCMMA": r"\bUTC\w*MMA",
    "LDG": r"\bLDG\b",
    "LDGSTS": r"\bLDGSTS",
    "TMA": r"\bUTMA|\bUBLKCP",
    "STG": r"\bSTG\b",
    "FP32": r"\bFFMA|\bFMUL|\bFADD",
    "MUFU": r"\bMUFU",
    "BAR": r"\bBAR\.",
}
AMD_INSTRUCTIONS = {"MFMA": r"\bv_mfma", "LDG": r"\b(?:global|buffer)_load", "STG": r"\b(?:global|buffer)_store"}


@dataclass
class Build:
    """A kernel for one target; everything after `seconds` is empty where `error` says why it did not compile."""

    seconds: float
    error: str | None = None
    warps: int = 0
    stages: int = 0
    registers: int = 0
    spill_bytes: int = 0
    shared: int = 0
    tensor_memory: int = 0
    blocks: int = 0  # per multiprocessor
    size: int = 0  # instructions
    instructions: dict[str, int] = field(default_factory=dict)

    @property
    def matrix_instructions(self) -> str:
        found = [f"{n} {name}" for name, n in self.instructions.items() if name.endswith("MMA") or name == "MFMA"]
        return ", ".join(found) or "none"


def compile_apart(compiler: Callable[[], Any], target: Target) -> Build:
    """Run `compiler` (-> triton's CompiledKernel) in a forked process, which a crash of the compiler ends alone."""
    _warm_up(target)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(write_end, "w") as pipe:
            json.dump(asdict(_compile(compiler, target)), pipe)
            pipe.flush()
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not answer:
        return Build(0, error=f"the compiler crashed with signal {os.WTERMSIG(status)}")
    return Build(**json.loads(answer))


@cache
def _warm_up(target: Target) -> None:
    """What triton finds out once per process: forks inherit it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import triton_key

    triton_key()
    make_backend(GPUTarget(target.backend, target.arch, target.warp_size)).hash()


def _compile(compiler: Callable[[], Any], target: Target) -> Build:
    log = io.StringIO()
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(log):  # triton prints ptxas's log
            kernel = compiler()
        seconds = time.perf_counter() - started
        return replace(inspect_kernel(kernel, log.getvalue(), target), seconds=seconds)
    except Exception as error:  # whatever the compiler raises is this kernel's row
        first_line = (str(error).strip().splitlines() or [""])[0]
        return Build(time.perf_counter() - started, error=f"{type(error).__name__}: {first_line[:200]}")


def inspect_kernel(kernel: Any, ptxas_log: str, target: Target) -> Build:
    """Read a CompiledKernel's code. `ptxas_log`: what ptxas -v said about it."""
    meta = kernel.metadata
    build = Build(0, warps=meta.num_warps, stages=meta.num_stages, shared=meta.shared)
    build.tensor_memory = getattr(meta, "tmem_size", None) or 0
    if target.backend == "hip":
        code = kernel.asm["amdgcn"]
        build.registers, build.spill_bytes = _amd(code, "vgpr_count"), 4 * _amd(code, "vgpr_spill_count")
        listing, patterns = re.findall(r"^\t([a-z]\w+.*)$", code, re.MULTILINE), AMD_INSTRUCTIONS
    else:
        sass, usage = _disassemble(kernel.asm["cubin"])
        build.registers = int(_only(r"REG:(\d+)", usage, "cuobjdump"))
        _only(r"bytes (spill stores)", ptxas_log, "ptxas's log")
        build.spill_bytes = sum(map(int, re.findall(r"(\d+) bytes spill stores", ptxas_log)))
        listing, patterns = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s*(.*?);", sass, re.MULTILINE), INSTRUCTIONS
    build.blocks = occupancy(target, build.registers, build.shared, build.warps)
    build.size = len(listing)
    counts = {name: sum(bool(re.search(pattern, line)) for line in listing) for name, pattern in patterns.items()}
    build.instructions = {name: n for name, n in counts.items() if n}
    if target.tensor_memory and build.tensor_memory > target.tensor_memory:
        build.error = f"needs {build.tensor_memory} columns of tensor memory; {target.name} has {target.tensor_memory}"
    return build


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """nvdisasm's listing and cuobjdump's resource usage, with the tools inside the triton package."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return (
            _run(knobs.nvidia.nvdisasm.path, "-c", file.name),
            _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name),
        )


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _amd(code: str, name: str) -> int:
    return int(_only(rf"\.{name}:\s+(\d+)", code, "the amdgcn listing"))


def _only(pattern: str, text: str, source: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"{source} has nothing like {pattern!r}: {text[:200]!r}")
    return found.group(1)
