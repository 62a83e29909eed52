"""`hybridlm doctor`: what this machine can do, what would go wrong, and the line that repairs it. It only reads."""

import contextlib
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

Status = Literal["ok", "note", "problem"]

# What a package that may be missing is for; every other requirement is needed by every run.
OPTIONAL = {
    "triton": "the GPU kernels, and their tests in the interpreter",
    "flash-linear-attention": "fused norm, short convolution and loss on a GPU; the oracle of some tests",
    "transformers": "import and export of Hugging Face checkpoints",
    "lm-eval": "the standard benchmark tasks",
}
REPORTED = ("torch", "deepspeed", *OPTIONAL)

# torch holds the lock for a few seconds before and after ninja; a living build of this age has its compiler running.
STALE_LOCK_SECONDS = 120.0
BUILDERS = frozenset({"ninja", "g++", "c++", "cc1plus", "clang++", "nvcc", "cicc", "ptxas", "ld", "collect2"})
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line of the report. `fix` is a command or a sentence, empty when there is nothing to repair."""

    name: str
    status: Status
    text: str
    fix: str = ""


def run_doctor(console: Console) -> int:
    """Print the report on `console`; 1 if there is a problem, else 0."""
    checks = doctor()
    colour = {"ok": "green", "note": "yellow", "problem": "red"}
    table = Table(title="hybridlm doctor", title_justify="left")
    for column in ("check", "status", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(Text(check.name), Text(check.status, colour[check.status]), Text(check.text))
    console.print(table)
    for check in checks:
        if check.fix:
            # soft_wrap keeps a command in one piece, so that it can be copied.
            console.print(Text(check.name, colour[check.status]) + f": {check.fix}", soft_wrap=True)
    return int(any(check.status == "problem" for check in checks))


def doctor() -> list[Check]:
    """All checks, in the order of the report."""
    checks = [_check_python(), *check_versions(installed_version)]
    if installed_version("torch"):
        gpus = list_gpus()
        checks += [check_cpu(), check_threads(), check_gpus(gpus)]
        checks += check_hopper_triton(gpus, installed_version("triton"))
        checks += [check_native(), *check_backends()]
    checks += [check_memory(psutil.virtual_memory().total, psutil.virtual_memory().available)]
    checks += [check_compiler(), check_ninja(shutil.which("ninja"), Path(sysconfig.get_path("scripts")) / "ninja")]
    checks += check_locks(extensions_root(), time.time(), building_folders())
    checks += [check_caches(cache_folders()), check_writable(Path("runs"))]
    return checks


# Packages


def installed_version(name: str) -> str | None:
    """The version of distribution `name`, or None. Imports nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> dict[str, Requirement]:
    """Every requirement of hybridlm by name, whatever extra it belongs to."""
    found = [Requirement(line) for line in metadata.requires("hybridlm") or []]
    return {requirement.name.lower(): requirement for requirement in found}


def check_versions(version_of: Callable[[str], str | None]) -> list[Check]:
    """Each reported package against the bound that pyproject.toml sets."""
    if installed_version("hybridlm") is None:
        return [Check("hybridlm", "problem", "runs from a folder that is not installed", "pip install -e .")]
    wanted = requirements()
    return [_check_version(name, version_of(name), wanted[name]) for name in REPORTED]


def _check_version(name: str, version: str | None, wanted: Requirement) -> Check:
    fix = f'pip install "{name}{wanted.specifier}"'
    if version is None and name in OPTIONAL:
        return Check(name, "note", f"not installed; it is for {OPTIONAL[name]}", fix)
    if version is None:
        return Check(name, "problem", "not installed; nothing runs without it", fix)
    if not wanted.specifier.contains(version, prereleases=True):
        return Check(name, "problem", f"{version}, hybridlm needs {wanted.specifier}", fix)
    return Check(name, "ok", version)


def _check_python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} ({sys.executable})")


# Processor and memory


def check_cpu() -> Check:
    """Vector width as torch sees it, and whether bfloat16 arithmetic is done in hardware."""
    import torch

    flags = _cpu_flags()
    bf16 = sorted(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    text = f"{platform.machine()}, torch uses {torch.backends.cpu.get_cpu_capability()}"
    if bf16:
        return Check("CPU", "ok", f"{text}, bfloat16 in hardware ({', '.join(bf16)})")
    if not flags:
        return Check("CPU", "ok", f"{text}, bfloat16 support unknown")
    return Check("CPU", "note", f"{text}, bfloat16 is emulated", "train in float32 on this CPU")


def _cpu_flags() -> set[str]:
    """Feature flags of the first core from Linux' /proc/cpuinfo; empty where there is no such file."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return set(value.split())
    return set()


def check_threads() -> Check:
    """Cores that this process may use against the threads that torch will start."""
    import torch

    # A container or a batch system may grant fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"{cores} cores, {threads} torch threads"
    if threads > cores:
        return Check("threads", "note", f"{text}: they will wait for each other", f"export OMP_NUM_THREADS={cores}")
    return Check("threads", "ok", text)


def check_memory(total: int, available: int) -> Check:
    """Main memory, sizes in bytes."""
    text = f"{total / GIB:.1f} GiB, {available / GIB:.1f} GiB free"
    if available < 2 * GIB:
        return Check("memory", "note", text, "close other programs, or lower train.micro_batch and model.context")
    return Check("memory", "ok", text)


# GPUs and kernels


@dataclass(frozen=True)
class Gpu:
    """One visible device: its name, compute capability and memory in bytes."""

    name: str
    major: int
    minor: int
    memory: int


def list_gpus() -> list[Gpu]:
    """The GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Gpu(device.name, device.major, device.minor, device.total_memory) for device in devices]


def check_gpus(gpus: list[Gpu]) -> Check:
    """Which GPUs are usable, and the case of a GPU that a CPU build of torch cannot see."""
    if gpus:
        text = "; ".join(f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.memory / GIB:.0f} GiB)" for gpu in gpus)
        if min(gpu.major for gpu in gpus) < 8:
            return Check("GPU", "note", f"{text}: no bfloat16 before sm_80", "train in float32")
        return Check("GPU", "ok", text)
    if Path("/proc/driver/nvidia/version").exists():
        return Check(
            "GPU",
            "problem",
            f"an NVIDIA driver is loaded, but torch {installed_version('torch')} sees no GPU: a CPU build of torch, or "
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}",
            "pip install -c constraints/cuda.txt torch",
        )
    return Check("GPU", "ok", "none; models run on the CPU")


def check_hopper_triton(gpus: list[Gpu], triton: str | None) -> list[Check]:
    """triton 3.4 to 3.7.0 miscompiles the gated delta rule's backward on Hopper (sm_90): wrong dk and dg, no error.

    Source: flash-linear-attention issues 640 and 826; its guard is pull request 983.
    """
    if triton is None or not any(gpu.major == 9 for gpu in gpus):
        return []
    if Version("3.4") <= Version(triton) < Version("3.7.1"):
        text = f"triton {triton} on Hopper computes wrong gradients of the gated delta rule"
        return [Check("triton on Hopper", "problem", text, "pip install -c constraints/cuda.txt torch triton")]
    return [Check("triton on Hopper", "ok", f"triton {triton} is outside the range 3.4 to 3.7.0 that miscompiles")]


def check_backends() -> list[Check]:
    """Per operator: the backends that run on this machine's device, and why the others do not."""
    from ..kernels import available_backends, operators

    checks = []
    for op in operators():
        reasons = available_backends(op)
        lines = [", ".join(name for name, reason in reasons.items() if reason is None)]
        lines += [f"not {name}: {reason}" for name, reason in reasons.items() if reason]
        checks.append(Check(op, "ok", "\n".join(lines)))
    return checks


# Compiler and build locks


def build_native(console: Console) -> None:
    """Compile the native CPU kernels, unless that is done, and say where they are. Raises UserError if it fails."""
    from ..kernels.native import build
    from ..lm.parts.errors import UserError

    try:
        console.print(f"native kernels: built for this machine, {build.build()}", highlight=False, soft_wrap=True)
    except build.NativeBuildError as error:
        raise UserError(str(error)) from None


def check_native() -> Check:
    """Whether the native CPU kernels are compiled for this machine, or could be."""
    from ..kernels.native import build

    if build.is_built():
        return Check("native kernels", "ok", f"built for this machine, {build.library_path()}")
    if build.compiler() is None:
        return Check("native kernels", "note", f"not built: {build.no_compiler()}")
    text = "not built: linear recurrences run several times slower on this CPU"
    return Check("native kernels", "note", text, "hybridlm doctor --build")


def check_compiler() -> Check:
    """The C++ compiler that torch would start."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        text = f"{name} not found; DeepSpeed's C++ operators and the native CPU kernels cannot be built"
        return Check("C++ compiler", "note", text, "install g++, or name another compiler: export CXX=clang++")
    return Check("C++ compiler", "ok", path)


def check_ninja(on_path: str | None, in_environment: Path) -> Check:
    """torch starts ninja by name, so an environment that is not activated hides the one that pip installed."""
    if on_path:
        return Check("ninja", "ok", on_path)
    if in_environment.exists():
        text = f"{in_environment} is not on PATH, so C++ operators cannot be built"
        return Check("ninja", "note", text, f'export PATH="{in_environment.parent}:$PATH"')
    return Check("ninja", "note", "not installed, so C++ operators cannot be built", "pip install ninja")


def extensions_root() -> Path:
    """Where torch and DeepSpeed build C++ operators: TORCH_EXTENSIONS_DIR or torch's own default."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions")


def building_folders() -> set[Path | None]:
    """Working folders of the compilers that run now; None stands for one whose folder may not be read."""
    folders: set[Path | None] = set()
    for process in psutil.process_iter(["name"]):
        if process.info["name"] not in BUILDERS:
            continue
        try:
            folders.add(Path(process.cwd()))
        except psutil.AccessDenied:
            folders.add(None)
        except psutil.NoSuchProcess:
            continue
    return folders


def check_locks(root: Path, now: float, building: set[Path | None]) -> list[Check]:
    """A killed build leaves its `lock` file, and every later run waits for it for ever, in silence.

    A lock counts as stale when it is older than `STALE_LOCK_SECONDS` and no compiler runs in its folder.
    """
    checks = []
    for lock in sorted(root.glob("**/lock")):
        try:
            age = now - lock.stat().st_mtime
        except FileNotFoundError:
            continue  # its build has just ended
        text = f"{lock}, {age / 60:.0f} minutes old"
        if lock.parent in building or None in building:
            checks.append(Check("build lock", "note", f"{text}: a build is running, let it finish"))
        elif age < STALE_LOCK_SECONDS:
            checks.append(Check("build lock", "note", f"{text}: a build may be starting, ask again in two minutes"))
        else:
            text = f"{text}, and no compiler of this host works there: every run that needs this operator hangs"
            checks.append(Check("build lock", "problem", text, f"rm {shlex.quote(str(lock))}"))
    return checks or [Check("build lock", "ok", f"none under {root}")]


# Disk


def cache_folders() -> list[Path]:
    """Folders that compilers and downloads fill."""
    triton = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    hugging_face = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return [extensions_root(), Path(triton), Path(hugging_face), Path.home() / ".cache" / "hybridlm"]


def check_caches(folders: list[Path]) -> Check:
    """Size of each cache folder."""
    sizes = {folder: _folder_bytes(folder) for folder in folders if folder.is_dir()}
    text = ", ".join(f"{folder} {size / GIB:.2f} GiB" for folder, size in sizes.items()) or "empty"
    large = [str(folder) for folder, size in sizes.items() if size > 20 * GIB]
    if large:
        return Check("caches", "note", text, f"they may be emptied when no run is active: {', '.join(large)}")
    return Check("caches", "ok", text)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def check_writable(folder: Path) -> Check:
    """Whether a run folder can be created in `folder`, or `folder` itself where it does not exist yet."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    name = f"{folder}/"
    try:
        with tempfile.TemporaryDirectory(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        fix = "start hybridlm in a folder that you may write to"
        return Check(name, "problem", f"{nearest} cannot be written: {error.strerror}", fix)
    text = f"{nearest} can be written, {free / GIB:.0f} GiB free"
    if free < 5 * GIB:
        return Check(name, "note", text, "checkpoints need room: delete old runs")
    return Check(name, "ok", text)
