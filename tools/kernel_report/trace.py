"""Observers of interpreted Triton kernels: every launch, program, memory access, dot and exponential, as it happens.

Works where TRITON_INTERPRET=1 was set before triton was imported. Observers see addresses and sizes, never values, and
what they see does not depend on the data unless a kernel's control flow does.
"""

import inspect
import itertools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

SPECIAL_FUNCTIONS = ("exp", "exp2", "log", "log2", "sqrt", "sin", "cos")


@dataclass(frozen=True)
class TracedLaunch:
    """One kernel[grid](...). `tensors` and `constexprs` go by argument name; num_warps and num_stages count as the
    latter where the launch gives them."""

    kernel: str
    tensors: dict[str, Tensor]
    constexprs: dict[str, Any]


@dataclass(frozen=True)
class Access:
    """The lanes of one tl.load, tl.store or atomic that the mask lets through: their byte addresses, flattened."""

    kind: Literal["load", "store", "atomic"]
    addresses: np.ndarray  # uint64
    itemsize: int
    program: tuple[int, int, int]


@dataclass(frozen=True)
class Dot:
    """One tl.dot: 2 M N K FLOPs on operands of `dtype` ("bf16", "fp32", ...); `precision` ("tf32", "ieee", ...) says
    how float32 operands are multiplied."""

    dtype: str
    precision: str
    flops: int


class Observer:
    """Override what is of interest. An exception ends the launch; triton wraps it into its InterpreterError."""

    def launch_begins(self, launch: TracedLaunch) -> None: ...

    def program_begins(self, program: tuple[int, int, int]) -> None: ...

    def accesses(self, access: Access) -> None:
        """Called before the memory is touched."""

    def multiplies(self, dot: Dot) -> None: ...

    def evaluates(self, n: int) -> None:
        """n elements of a function for which a GPU has a special unit: exp, log, square root, sine."""

    def waits(self) -> None:
        """A barrier among the threads of the program, tl.debug_barrier."""

    def launch_ends(self) -> None:
        """Called for launches that succeed."""


@contextmanager
def observe(*observers: Observer, seed: int | None = None) -> Iterator[None]:
    """Tell the observers of all launches inside. `seed`: run each launch's programs in a random order. Nests."""
    from triton.runtime import interpreter

    from ...kernels.shared.triton_interpreter import install

    install()
    patched: Any = interpreter
    builder = patched.interpreter_builder
    before = type(builder), patched.GridExecutor
    order = None if seed is None else random.Random(seed)
    builder.__class__ = _traced_builder(before[0], observers, order)
    patched.GridExecutor = _traced_executor(before[1], observers)
    try:
        yield
    finally:
        builder.__class__, patched.GridExecutor = before


def _traced_executor(base: Any, observers: tuple[Observer, ...]) -> Any:
    class Executor(base):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            named = dict(zip(self.arg_names, args, strict=False)) | kwargs
            known = inspect.getcallargs(self.fn, **{name: named[name] for name in self.arg_names if name in named})
            options = [name for name in ("num_warps", "num_stages") if name in kwargs]
            constexprs = {name: (known | kwargs)[name] for name in [*self.constexprs, *options]}
            launch = TracedLaunch(self.fn.__name__, dict(_tensors(known)), constexprs)
            for observer in observers:
                observer.launch_begins(launch)
            with _disable_current_modes():  # the interpreter's own handling of arguments is none of a mode's business
                result = super().__call__(*args, **kwargs)
            for observer in observers:
                observer.launch_ends()
            return result

    return Executor


def _tensors(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among the arguments, those of tensor descriptors and tuples included."""
    for name, value in arguments.items():
        value = getattr(value, "base", value)  # of a tensor descriptor
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from _tensors({f"{name}[{i}]": x for i, x in enumerate(value)})


def _traced_builder(base: Any, observers: tuple[Observer, ...], order: random.Random | None) -> Any:
    def tell(builder: Any, kind: Any, pointers: Any, mask: Any) -> None:
        addresses, allowed = np.broadcast_arrays(pointers.data, True if mask is None else np.asarray(mask.data))
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        access = Access(kind, addresses[allowed], itemsize, builder.grid_idx)
        for observer in observers:
            observer.accesses(access)

    class Builder(base):
        def set_grid_dim(self, *sizes):
            if order:
                self.programs = list(itertools.product(*map(range, sizes)))
                order.shuffle(self.programs)
            super().set_grid_dim(*sizes)

        def set_grid_idx(self, *program):
            super().set_grid_idx(*(self.programs.pop() if order else program))
            for observer in observers:
                observer.program_begins(self.grid_idx)

        def create_masked_load(self, ptrs, mask, *rest):
            tell(self, "load", ptrs, mask)
            return super().create_masked_load(ptrs, mask, *rest)

        def create_masked_store(self, ptrs, value, mask, *rest):
            tell(self, "store", ptrs, mask)
            return super().create_masked_store(ptrs, value, mask, *rest)

        def create_atomic_rmw(self, op, ptr, val, mask, *rest):
            tell(self, "atomic", ptr, mask)
            return super().create_atomic_rmw(op, ptr, val, mask, *rest)

        def create_atomic_cas(self, ptr, *rest):
            tell(self, "atomic", ptr, None)
            return super().create_atomic_cas(ptr, *rest)

        def create_barrier(self):
            for observer in observers:
                observer.waits()
            super().create_barrier()

        def create_dot(self, a, b, d, precision, *rest):
            flops = 2 * math.prod(a.data.shape) * b.data.shape[-1]
            for observer in observers:
                observer.multiplies(Dot(a.dtype.scalar.name, precision.name.lower(), flops))
            return super().create_dot(a, b, d, precision, *rest)

        def unary_op(self, arg, op):
            if op.__name__ in SPECIAL_FUNCTIONS:
                for observer in observers:
                    observer.evaluates(arg.data.size)
            return super().unary_op(arg, op)

        def create_rsqrt(self, arg):
            for observer in observers:
                observer.evaluates(arg.data.size)
            return super().create_rsqrt(arg)

    return Builder
