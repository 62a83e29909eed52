"""A pretended GPU: host code of triton and libraries runs as on the card, kernels are specialised, none is launched.

Only two things are replaced: the driver (which says what the card is) and the step that compiles a kernel, which hands
back a stand-in whose launch is noted in `launches`. Binding, specialisation, heuristics, autotuners and grids are
triton's own.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .hardware import Target


@dataclass
class PretendedLaunch:
    """One kernel launch; `build` numbers the specialisations in the order they were first needed."""

    kernel: str
    constants: dict[str, Any]  # constexpr arguments
    grid: tuple[int, int, int]
    build: int


class PretendedGPU:
    """Install at most one per process, before importing a library that asks torch.cuda what it runs on."""

    def __init__(self, target: Target, rank: Callable[[Any], Any]):
        """`rank(config)` stands for an autotuner's measurement: the lowest is chosen."""
        self.target = target
        self.launches: list[PretendedLaunch] = []
        self.compilers: list[Callable[[], Any]] = []  # per build, () -> CompiledKernel
        self.record = True  # off: a launch does nothing at all, for timing the host
        self._cached: list[tuple[dict[str, Any], str]] = []
        _pretend_torch(target)
        self._pretend_triton(rank)

    def forget(self) -> None:
        """As if no kernel had been needed so far; for the next subject's builds to be numbered from 0."""
        for cache, key in self._cached:
            del cache[key]
        self._cached.clear()
        self.compilers.clear()
        self.launches.clear()

    def _pretend_triton(self, rank: Callable[[Any], Any]) -> None:
        import triton
        from triton import knobs
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.jit import JITFunction

        triton.runtime.driver.set_active(_Driver(self.target))  # type: ignore[arg-type]
        knobs.nvidia.dump_ptxas_log = True
        compile_kernel = JITFunction._do_compile

        def stand_in(fn: Any, key: str, signature: Any, device: int, constexprs: Any, *rest: Any) -> "_Kernel":
            kernel = _Kernel(self, fn.fn.__name__, _names(fn, constexprs), len(self.compilers))
            self.compilers.append(lambda: compile_kernel(fn, key, signature, device, constexprs, *rest))
            fn.device_caches[device][0][key] = kernel
            self._cached.append((fn.device_caches[device][0], key))
            return kernel

        def measure(tuner: Any, *args: Any, config: Any, **meta: Any) -> Any:
            return rank(config)

        JITFunction._do_compile = stand_in  # type: ignore[method-assign]
        Autotuner._bench = measure  # type: ignore[method-assign]


class _Kernel:
    """What JITFunction.run asks of a compiled kernel."""

    function = packed_metadata = None

    def __init__(self, gpu: PretendedGPU, name: str, constants: dict[str, Any], build: int):
        self.gpu, self.name, self.constants, self.build = gpu, name, constants, build

    def launch_metadata(self, grid: Any, stream: int, *args: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, *args: Any) -> None:
        if self.gpu.record:
            self.gpu.launches.append(PretendedLaunch(self.name, self.constants, (x, y, z), self.build))


class _Driver:
    """The questions that compile-time code asks of a driver."""

    def __init__(self, target: Target):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(target.backend, target.arch, target.warp_size)
        properties = {
            "max_shared_mem": target.shared_per_block,
            "multiprocessor_count": target.processors,
            "max_num_regs": target.registers,
            "warpSize": target.warp_size,
        }
        self.utils = types.SimpleNamespace(get_device_properties=lambda index: properties)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda


def _pretend_torch(target: Target) -> None:
    major, minor = divmod(target.arch, 10) if isinstance(target.arch, int) else (9, 4)
    properties = types.SimpleNamespace(
        name=target.card,
        multi_processor_count=target.processors,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=target.shared_per_block,
        total_memory=80 << 30,
        major=major,
        minor=minor,
    )
    answers = {
        "get_device_name": target.card,
        "get_device_capability": (major, minor),
        "get_device_properties": properties,
        "device_count": 1,
        "current_device": 0,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer: answer)


def _names(fn: Any, constexprs: dict[tuple[int, ...], Any]) -> dict[str, Any]:
    """The constexpr arguments by name, those that JSON can hold."""
    plain = {path[0]: value for path, value in constexprs.items() if len(path) == 1}
    return {fn.arg_names[i]: v for i, v in plain.items() if isinstance(v, int | float | str | bool | None)}
