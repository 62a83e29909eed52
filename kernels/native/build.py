"""Compiles the C++ kernels once per machine into ~/.cache/hybridlm/native and says whether that is done.

The library has a plain C interface: it needs a C++17 compiler with OpenMP, neither torch's nor Python's headers, so it
builds in seconds and outlives an update of either. It is compiled for this very processor (-march=native).
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parents[1]  # kernels/: each operator's folder holds its own, native/ what they share
CACHE = Path(os.path.expanduser("~/.cache/hybridlm/native"))
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    # NaN and inf keep their meaning: nothing of -ffast-math but what cannot change a result
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
)
WIDE_VECTORS = "-mprefer-vector-width=512"  # x86 compilers otherwise use half of an AVX-512 register


class NativeBuildError(RuntimeError):
    """The native kernels cannot be compiled here; the message says why and what to do."""


@functools.cache
def _which(name: str) -> str | None:
    return shutil.which(name)


def compiler() -> str | None:
    """Path of the C++ compiler: the one that CXX names, else g++ or clang++; None if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return next((path for name in names if (path := _which(name))), None)


def no_compiler() -> str:
    """What is missing and what to install."""
    if os.environ.get("CXX"):
        return f"the C++ compiler that CXX names, {os.environ['CXX']}, is not there; install it, or unset CXX"
    return "no C++ compiler was found; install one (Debian, Ubuntu: apt install g++), then: hybridlm doctor --build"


def flags() -> tuple[str, ...]:
    return (*FLAGS, WIDE_VECTORS) if platform.machine() in ("x86_64", "AMD64") else FLAGS


@functools.cache
def cache_key(sources: Path) -> str:
    """Changes with the sources, the flags and the processor."""
    digest = hashlib.sha256(" ".join(flags()).encode())
    digest.update(_processor().encode())
    for path in sorted([*sources.glob("*/*.cpp"), *sources.glob("*/*.h")]):
        digest.update(f"\0{path.relative_to(sources)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Model and features of the first core; the machine type where Linux' /proc/cpuinfo is missing."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in wanted)


def library_path() -> Path:
    """Where the library for this machine is, or will be."""
    return _library_path(CACHE, SOURCES)


@functools.cache
def _library_path(cache: Path, sources: Path) -> Path:
    return cache / f"{cache_key(sources)}.so"


_seen: set[Path] = set()  # libraries that were there


def is_built() -> bool:
    """Asked at every call of an operator: a library that was there is not looked for again."""
    path = library_path()
    if path in _seen:
        return True
    if path.exists():
        _seen.add(path)
        return True
    return False


def build() -> Path:
    """Compile unless that is done; progress goes to stderr. Safe to call from many processes, and to kill at any time.

    Raises NativeBuildError without a compiler, and with the compiler's own output if it fails.
    """
    target = library_path()
    if target.exists():
        return target
    command = compiler()
    if command is None:
        raise NativeBuildError(no_compiler())
    import fcntl  # only where there is a POSIX system

    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        lock_file = (CACHE / "lock").open("w")
    except OSError as error:
        raise NativeBuildError(f"{CACHE} cannot be written: {error.strerror}; make it writable") from None
    with lock_file as lock:
        # the system drops this lock when its process ends, however it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is compiling the native kernels: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for left_behind in CACHE.glob("build-*"):  # by a killed build: the lock is ours
                shutil.rmtree(left_behind, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="build-", dir=CACHE) as folder:
                _compile(command, Path(folder)).replace(target)
    return target


def _compile(command: str, folder: Path) -> Path:
    sources = sorted(SOURCES.glob("*/*.cpp"))
    names = [f"{source.parent.name}/{source.stem}" for source in sources]
    _say(f"compiling the native kernels with {command}: {', '.join(names)} (less than a minute)")
    objects = [folder / f"{name.replace('/', '-')}.o" for name in names]
    jobs = [
        _start([command, *flags(), "-c", str(source), "-o", str(target)])
        for source, target in zip(sources, objects, strict=True)
    ]
    for job in jobs:
        _finish(job)
    library = folder / "native.so"
    _finish(_start([command, *flags(), "-shared", *map(str, objects), "-o", str(library)]))
    return library


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(job: subprocess.Popen[str]) -> None:
    output, _ = job.communicate()
    if job.returncode:
        line = " ".join(map(str, job.args)) if isinstance(job.args, list) else str(job.args)
        raise NativeBuildError(
            "the native kernels do not compile; they need C++17 and OpenMP and are tested with g++ 12 (to choose a "
            f"compiler: export CXX=...). {line} ended with status {job.returncode}:\n{output}"
        )


def _say(text: str) -> None:
    print(f"hybridlm: {text}", file=sys.stderr, flush=True)
