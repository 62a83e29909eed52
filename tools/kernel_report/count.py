"""Exact counts of what interpreted Triton kernels and the PyTorch operations between them move and compute.

    with count() as counts:
        o, state = gated_delta_rule(..., backend="triton")
    counts.launches[0].unique_load_bytes

Counts depend on shapes only. Without a GPU they are the hard numbers to compare two designs by: stores agree exactly
with the compiled code, loads up to 1-D tiles that several warps fetch for themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .trace import Access, Dot, Observer, TracedLaunch, observe

SECTOR = 32  # bytes, the least that a GPU's L2 cache moves

# time of a FLOP on an H100, in that of a bf16 FLOP
RELATIVE_TIME = {"bf16": 1.0, "tf32": 2.0, "tf32x3": 6.0, "bf16x3": 3.0, "bf16x6": 6.0, "fp32": 14.8, "fp64": 14.8}


@dataclass
class LaunchCount:
    """One kernel launch. All bytes and FLOPs are sums over its programs.

    kernel: the function's name. programs: the size of its grid. constexprs: compile-time arguments by name, with
    num_warps and num_stages where the launch gives them.

    load_bytes, store_bytes: requested by the lanes that the masks let through; an atomic counts as a store.
    sector_bytes: 32-byte sectors per load or store, summed: what goes between the multiprocessors and the L2 cache.
    unique_load_bytes, unique_store_bytes: 32-byte sectors, each once per launch: what goes between L2 and HBM if L2
    catches every reuse inside the launch, and nothing stays in it from one launch to the next.
    by_argument: (unique_load_bytes, unique_store_bytes) for each tensor argument that is touched. Of arguments that
    share a storage, the one that begins closest before the first address of an access is charged.

    flops: 2 M N K of every tl.dot, by what multiplies: "bf16" (bf16 and fp16 operands), "fp64", and for float32
    operands "tf32", "tf32x3", "bf16x3", "bf16x6" or "fp32" (ieee). Products with masked-out rows count.
    exps: elements of exp, exp2, log, log2, sqrt, rsqrt, sin and cos, which share one unit of a GPU.
    serial_flops: dot FLOPs of the program that has most of them, in bf16 FLOPs that take an H100 the same time.
    """

    kernel: str
    programs: int = 0
    load_bytes: int = 0
    store_bytes: int = 0
    unique_load_bytes: int = 0
    unique_store_bytes: int = 0
    sector_bytes: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    exps: int = 0
    serial_flops: float = 0.0
    by_argument: dict[str, tuple[int, int]] = field(default_factory=dict)
    constexprs: dict[str, Any] = field(default_factory=dict)


class TorchOp(NamedTuple):
    """Calls of one PyTorch operation and the bytes they read and wrote."""

    calls: int
    bytes: int


@dataclass
class Counts:
    """Filled while the `with` block runs. torch_ops: by name, e.g. "aten.sum.dim_IntList"; views and allocations move
    nothing and are left out."""

    launches: list[LaunchCount] = field(default_factory=list)
    torch_ops: dict[str, TorchOp] = field(default_factory=dict)

    @property
    def torch_bytes(self) -> int:
        return sum(op.bytes for op in self.torch_ops.values())


@contextmanager
def count() -> Iterator[Counts]:
    """Count every launch, and every PyTorch operation outside of launches, that this thread makes in the block."""
    counts = Counts()
    with _TorchCounter(counts.torch_ops), observe(_LaunchCounter(counts.launches)):
        yield counts


class _LaunchCounter(Observer):
    def __init__(self, launches: list[LaunchCount]) -> None:
        self.launches = launches

    def launch_begins(self, launch: TracedLaunch) -> None:
        self.now = LaunchCount(launch.kernel, constexprs=launch.constexprs)
        self.begins = sorted((tensor.data_ptr(), name) for name, tensor in launch.tensors.items())
        self.sectors: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)  # by argument, is it a store
        self.flops: Counter[str] = Counter()
        self.serial = [0.0]

    def program_begins(self, program: tuple[int, int, int]) -> None:
        self.now.programs += 1
        self.serial.append(0.0)

    def accesses(self, access: Access) -> None:
        if not access.addresses.size:
            return
        sectors = np.unique(access.addresses // SECTOR)
        name = [name for begin, name in self.begins if begin <= access.addresses[0]][-1]
        self.sectors[name, access.kind != "load"].append(sectors)
        self.now.sector_bytes += SECTOR * sectors.size
        requested = access.addresses.size * access.itemsize
        if access.kind == "load":
            self.now.load_bytes += requested
        else:
            self.now.store_bytes += requested

    def multiplies(self, dot: Dot) -> None:
        kind = {"bf16": "bf16", "fp16": "bf16", "fp64": "fp64"}.get(dot.dtype, dot.precision)
        kind = "fp32" if kind == "ieee" else kind
        self.flops[kind] += dot.flops
        self.serial[-1] += dot.flops * RELATIVE_TIME[kind]

    def evaluates(self, n: int) -> None:
        self.now.exps += n

    def launch_ends(self) -> None:
        now = self.now
        now.flops = dict(self.flops)
        now.serial_flops = max(self.serial)
        now.unique_load_bytes, now.unique_store_bytes = self._unique(False), self._unique(True)
        names = sorted({name for name, _ in self.sectors})
        now.by_argument = {name: (self._unique(False, name), self._unique(True, name)) for name in names}
        self.launches.append(now)

    def _unique(self, stores: bool, argument: str | None = None) -> int:
        parts = [
            part
            for (name, is_store), found in self.sectors.items()
            if is_store == stores and argument in (None, name)
            for part in found
        ]
        return SECTOR * np.unique(np.concatenate(parts)).size if parts else 0


class _TorchCounter(TorchDispatchMode):
    """Bytes of the tensors that an operation reads and writes; an operation is taken to touch each element once."""

    def __init__(self, ops: dict[str, TorchOp]) -> None:
        super().__init__()
        self.ops = ops

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        result = func(*args, **(kwargs or {}))
        moved = _bytes_moved(func, args, kwargs or {}, result)
        if moved:
            before = self.ops.get(str(func), TorchOp(0, 0))
            self.ops[str(func)] = TorchOp(before.calls + 1, before.bytes + moved)
        return result


def _bytes_moved(func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> int:
    name = func.overloadpacket.__name__
    if func.is_view or "empty" in name or name in ("_unsafe_view", "detach", "resize_", "set_", "lift_fresh"):
        return 0
    written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if name.startswith("new_") or name.endswith("_like"):  # of a given tensor only its shape is read
        read = []
    elif name in ("copy_", "zero_", "fill_"):  # the old values are not read
        read = [x for x in read if x is not result]
    return sum(map(_bytes, written)) + sum(map(_bytes, read))


def _bytes(x: Tensor) -> int:
    """Of distinct elements: an expanded dimension is read from the cache."""
    distinct = [size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size]
    return x.element_size() * int(torch.Size(distinct).numel())
