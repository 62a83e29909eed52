"""Sanitizers for interpreted Triton kernels: what a GPU would do silently, or only sometimes, fails here every time.

    with sanitized(seed=0) as launched:
        op(...)

fails on
- an access outside of the storage of one argument, at once and before the memory is touched,
- a load of bytes that nothing has written since torch.empty gave them out inside the block, even if the kernel then
  discards them; memory that stays unwritten is NaN,
- an address written by two programs of a launch, or read by one and written by another (atomics may meet atomics),
- two lanes of one store writing to one address,
- a program that loads what it stored itself, without tl.debug_barrier in between: its threads run at their own pace,
and runs the programs of every launch in an order of its own, so that a result which depends on the order changes.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridlm.tools.kernel_report.trace import Access, Observer, TracedLaunch, observe


class KernelFault(AssertionError):
    """A kernel did what it must not; the message says which kernel, which argument and what."""


@contextmanager
def sanitized(seed: int = 0) -> Iterator[list[str]]:
    """Raises KernelFault on a fault, wrapped into triton's InterpreterError where it stops a launch. Yields a list that
    the names of launched kernels are added to."""
    names = Names()
    memory = Memory()
    observers = (names, Bounds(), UnwrittenLoads(memory), Races(), ThreadRaces())
    with poisoned_empty_tensors(), memory, observe(*observers, seed=seed):
        yield names.launched


@contextmanager
def poisoned_empty_tensors() -> Iterator[None]:
    """torch.empty gives NaN (integers: the largest)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # the default
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Names(Observer):
    def __init__(self) -> None:
        self.launched: list[str] = []

    def launch_begins(self, launch: TracedLaunch) -> None:
        self.launched.append(launch.kernel)


class LaunchObserver(Observer):
    """Knows which launch is running and whose memory an address is in."""

    def launch_begins(self, launch: TracedLaunch) -> None:
        self.kernel = launch.kernel
        storages = {name: tensor.untyped_storage() for name, tensor in launch.tensors.items()}
        self.ranges = [(s.data_ptr(), s.data_ptr() + s.nbytes(), name) for name, s in storages.items()]

    def argument(self, first: int, last: int) -> str | None:
        """The argument that holds bytes `first` to `last`; all arguments' storages may hold it under several names."""
        names = [name for begin, end, name in self.ranges if begin <= first and last < end]
        return " or ".join(names) or None

    def fault(self, what: str, address: int) -> KernelFault:
        return KernelFault(f"{self.kernel}: {what}, argument {self.argument(address, address)}")


class Bounds(LaunchObserver):
    def accesses(self, access: Access) -> None:
        if not access.addresses.size:
            return
        first, last = int(access.addresses.min()), int(access.addresses.max()) + access.itemsize - 1
        if self.argument(first, last) is None:
            raise KernelFault(f"{self.kernel}: {access.kind} out of bounds in program {access.program}")


class Memory(TorchDispatchMode):
    """Which bytes of the tensors made by torch.empty have been written."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[torch.UntypedStorage, np.ndarray]] = {}  # kept alive: no address comes again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if "empty" in name:
            storage = result.untyped_storage()
            self.storages[storage.data_ptr()] = storage, np.zeros(storage.nbytes(), bool)
        elif name not in ("set_", "resize_"):  # these change what a tensor refers to
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    given = args[i] if i < len(args) else kwargs.get(argument.name)
                    for x in tree_leaves(given):
                        self.write_tensor(x)
        return result

    def write_tensor(self, x: Tensor) -> None:
        _, written = self.storages.get(x.untyped_storage().data_ptr(), (None, None))
        if written is not None and x.numel():
            strides = [stride * x.element_size() for stride in x.stride()]
            start = written[x.storage_offset() * x.element_size() :]
            np.lib.stride_tricks.as_strided(start, (*x.shape, x.element_size()), (*strides, 1))[...] = True

    def bytes_of(self, access: Access) -> tuple[np.ndarray, np.ndarray] | None:
        """(the written-flags of the storage, indices into them [lanes, itemsize]) if it came from torch.empty."""
        first = int(access.addresses[0])
        for begin, (storage, written) in self.storages.items():
            if begin <= first < begin + storage.nbytes():
                offsets = (access.addresses - np.uint64(begin)).astype(np.int64)
                return written, offsets[:, None] + np.arange(access.itemsize)
        return None


class UnwrittenLoads(LaunchObserver):
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def accesses(self, access: Access) -> None:
        found = self.memory.bytes_of(access) if access.addresses.size else None
        if found is None:
            return
        written, indices = found
        if access.kind != "store":
            missing = ~written[indices].all(1)
            if missing.any():
                what = f"{access.kind} of {missing.sum()} elements that nothing wrote, in program {access.program}"
                raise self.fault(what, int(access.addresses[missing][0]))
        if access.kind != "load":
            written[indices] = True


class Races(LaunchObserver):
    def launch_begins(self, launch: TracedLaunch) -> None:
        super().launch_begins(launch)
        self.touched: dict[str, list[tuple[np.ndarray, int]]] = defaultdict(list)
        self.program = -1

    def program_begins(self, program: tuple[int, int, int]) -> None:
        self.program += 1

    def accesses(self, access: Access) -> None:
        distinct = np.unique(access.addresses)
        if access.kind == "store" and distinct.size != access.addresses.size:
            raise self.fault(f"several lanes of a store share an address in program {access.program}", int(distinct[0]))
        self.touched[access.kind].append((distinct, self.program))

    def launch_ends(self) -> None:
        stores, loads, atomics = (self._programs(kind) for kind in ("store", "load", "atomic"))
        self._refuse_shared(stores, "written by more than one program")
        self._refuse_meetings(stores, loads, "written by one program and read by another")
        self._refuse_meetings(stores, atomics, "written by one program and updated atomically by another")
        self._refuse_meetings(atomics, loads, "updated atomically by one program and read by another")

    def _programs(self, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distinct addresses, and the lowest and highest program that touched each."""
        touched = self.touched[kind] or [(np.empty(0, np.uint64), 0)]
        addresses = np.concatenate([addresses for addresses, _ in touched])
        programs = np.concatenate([np.full(addresses.size, program) for addresses, program in touched])
        order = np.lexsort((programs, addresses))
        addresses, programs = addresses[order], programs[order]
        distinct, first, n = np.unique(addresses, return_index=True, return_counts=True)
        return distinct, programs[first], programs[first + n - 1]

    def _refuse_shared(self, touched: tuple[np.ndarray, np.ndarray, np.ndarray], what: str) -> None:
        addresses, lowest, highest = touched
        shared = addresses[lowest != highest]
        if shared.size:
            raise self.fault(f"{shared.size} addresses {what}", int(shared[0]))

    def _refuse_meetings(self, one, other, what: str) -> None:
        both, i, j = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
        meeting = both[np.minimum(one[1][i], other[1][j]) != np.maximum(one[2][i], other[2][j])]
        if meeting.size:
            raise self.fault(f"{meeting.size} addresses {what}", int(meeting[0]))


class ThreadRaces(LaunchObserver):
    def program_begins(self, program: tuple[int, int, int]) -> None:
        self.stored: list[np.ndarray] = []

    def waits(self) -> None:
        self.stored.clear()

    def accesses(self, access: Access) -> None:
        if access.kind == "store":
            self.stored.append(access.addresses)
            return
        for stored in self.stored:
            again = np.intersect1d(stored, access.addresses)
            if again.size:
                what = f"{access.kind} of {again.size} addresses that program {access.program} itself stored to"
                raise self.fault(f"{what}, with no barrier in between", int(again[0]))
