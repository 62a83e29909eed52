"""Calls into the compiled library, which is loaded at the first call. Each call releases the GIL."""

import ctypes
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .build import library_path

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
LARGE = 2**23  # bytes from which a result is worth huge pages
SEGMENT = 64  # tokens between two kept states, as in chunk.h

# The operators as torch sees them: what is counted, traced and profiled.
OPS = torch.library.Library("hybridlm_native", "DEF")


class _Call(ctypes.Structure):
    """`struct Call` of call.h."""

    _fields_ = (
        ("dtype", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("begin", ctypes.c_void_p),
        ("n_sequences", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("V", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("tensors", ctypes.c_void_p),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path()))


def call(
    function: str,
    dtype: torch.dtype,
    tensors: Sequence[Tensor | None],
    *,
    bounds: Sequence[int],
    heads: int,
    group: int = 1,
    K: int,
    V: int,
    scale: float = 1.0,
) -> None:
    """Run `function` on contiguous CPU tensors, in its own order; `bounds` are the N sequences' [N + 1] offsets."""
    begin = (ctypes.c_int64 * len(bounds))(*bounds)
    pointers = (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))
    arguments = _Call(
        DTYPES[dtype],
        torch.get_num_threads(),
        ctypes.addressof(begin),
        len(bounds) - 1,
        heads,
        group,
        K,
        V,
        scale,
        ctypes.addressof(pointers),
    )
    getattr(_library(), function)(ctypes.byref(arguments))


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
