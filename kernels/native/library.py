"""Calls into the compiled library, which is loaded at the first call. Each call releases the GIL."""

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .build import library_path

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
LARGE = 2**23  # bytes from which a result is worth huge pages
SEGMENT = 64  # tokens between two kept states, as in chunk.h

# The operators as torch sees them: what is counted, traced and profiled.
OPS = torch.library.Library("hybridlm_native", "DEF")


def implement(name: str, run: Callable[..., Any], blank: Callable[..., Any]) -> None:
    """What an op of `OPS` does on the CPU, and, for tensors that are none, its results with nothing in them."""
    OPS.impl(name, run, "CPU")
    torch.library.register_fake(f"hybridlm_native::{name}", blank, lib=OPS)


CALL = (  # `struct Call` of call.h
    ("dtype", ctypes.c_int64),
    ("threads", ctypes.c_int64),
    ("begin", ctypes.c_void_p),
    ("n_sequences", ctypes.c_int64),
    ("heads", ctypes.c_int64),
    ("group", ctypes.c_int64),
    ("K", ctypes.c_int64),
    ("V", ctypes.c_int64),
    ("scale", ctypes.c_double),
)


class NativeCall(NamedTuple):
    """What a kernel is told besides its tensors; `bounds` are the N sequences' [N + 1] offsets."""

    dtype: torch.dtype
    bounds: Sequence[int]
    heads: int
    K: int
    V: int
    group: int = 1  # value heads per head
    scale: float = 1.0


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path()))


class NativeKernel:
    """A function of the library. What it takes is a struct in C++: `struct Call`, then pointers to these tensors, by
    the same names and in the same order (tests/kernels/test_native_fields.py compares the two)."""

    def __init__(self, function: str, *tensors: str) -> None:
        self.function, self.tensors = function, tensors
        fields = (*CALL, *((name, ctypes.c_void_p) for name in tensors))
        self.struct = type("Arguments", (ctypes.Structure,), {"_fields_": fields})

    @functools.cached_property
    def _run(self) -> Callable[[Any], None]:
        run = getattr(_library(), self.function)
        run.restype = None
        return run

    def __call__(self, call: NativeCall, /, **tensors: Tensor | None) -> None:
        """On contiguous CPU tensors, the inputs of the call's dtype."""
        if tensors.keys() != set(self.tensors):
            raise TypeError(f"{self.function} takes {', '.join(self.tensors)}; given: {', '.join(tensors)}")
        begin = (ctypes.c_int64 * len(call.bounds))(*call.bounds)
        arguments = self.struct(
            DTYPES[call.dtype],
            torch.get_num_threads(),
            ctypes.addressof(begin),
            len(call.bounds) - 1,
            call.heads,
            call.group,
            call.K,
            call.V,
            call.scale,
            *[None if (x := tensors[name]) is None else x.data_ptr() for name in self.tensors],
        )
        self._run(ctypes.byref(arguments))


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A result for the kernels to write, on huge pages if it is large."""
    x = torch.empty(shape, dtype=dtype)
    if x.nbytes >= LARGE:
        _library().hybridlm_huge_pages(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.nbytes))
    return x


def n_segments(bounds: Sequence[int]) -> int:
    """How many states are kept for backward."""
    return sum(-(-(b - a) // SEGMENT) for a, b in itertools.pairwise(bounds))


def kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels read instead of `dtype`: float16 is widened outside them."""
    return torch.float32 if dtype == torch.float16 else dtype


def decays(g: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(g), contiguous; ones, one per head of `like` [..., H, K], where there is no gate."""
    return like.new_ones(like.shape[:-1], dtype=dtype) if g is None else g.to(dtype).exp().contiguous()
