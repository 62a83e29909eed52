"""What the Triton kernels share: their register, tables of chunks, and the pieces of arithmetic that need care."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from .sequences import HOST, Sequences

if knobs.runtime.interpret:
    from .triton_interpreter import install

    install()

jit: Any = triton.jit  # as Any, so that type checkers let a kernel call another
MAX_HEAD_DIM = 256
KERNELS: dict[str, str] = {}  # name of each launched kernel -> operator it belongs to


def kernel(op: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """triton.jit, entered in KERNELS."""

    def decorate(function: Callable[..., Any]) -> Any:
        KERNELS[function.__name__] = op
        return jit(function, **options)

    return decorate


class Tables(NamedTuple):
    """Sequences of flattened tokens [B*T, ...] cut into chunks of C tokens, numbered sequence by sequence."""

    sequence: Tensor  # int32 [N, 3]: first token, number of tokens, first chunk
    chunk: Tensor  # int32 [n_chunks, 2]: first token, number of tokens (1 to C)
    n_sequences: int
    n_chunks: int
    size: int  # C


def tables(sequences: Sequences, size: int, device: torch.device) -> Tables:
    """`size` tokens per chunk."""
    return sequences.once(_tables, size, device)


def _tables(sequences: Sequences, size: int, device: torch.device) -> Tables:
    rows, chunks, token = [], [], 0
    for length in sequences.lengths:
        rows.append((token, length, len(chunks)))
        chunks.extend((token + i, min(size, length - i)) for i in range(0, length, size))
        token += length
    on_device = [torch.tensor(x, dtype=torch.int32, device=HOST).to(device) for x in (rows, chunks)]
    return Tables(on_device[0], on_device[1], len(rows), len(chunks), size)


def chunk_length(sequences: Sequences, K: int, chunk_size: int) -> int:
    """Tokens per chunk: at most chunk_size, 32 for keys wider than 128 (registers), no more than sequences need."""
    return min(chunk_size, 64 if K <= 128 else 32, padded(sequences.longest))


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the device; an H100's 132 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def check_inputs(op: str, x: Tensor, **head_dims: int) -> None:
    """Raises ValueError for a dtype or head dim the kernels do not take."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f'{op}: backend "triton" got {x.dtype}; allowed: float32, bfloat16, float16. '
            'Cast the inputs or use backend="chunked"'
        )
    for name, dim in head_dims.items():
        if not 1 <= dim <= MAX_HEAD_DIM:
            raise ValueError(
                f'{op}: backend "triton" got head dim {name}={dim}; allowed: 1 to {MAX_HEAD_DIM}. '
                'Use more, narrower heads or backend="chunked"'
            )


def padded(dim: int) -> int:
    """The power of two that a kernel's block uses for a head dim; dots need 16."""
    return max(16, 1 << (dim - 1).bit_length())


def precision(dtype: torch.dtype) -> str:
    """Of float32 dots: as good as float32 for float32 inputs; for others TF32, which is finer than they are."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def contiguous(*tensors: Tensor | None) -> list[Any]:
    return [x if x is None else x.contiguous() for x in tensors]


@jit
def gate_sums(g):
    """Running sums G of log decays [C] in two parts: multiples of 2^-10, exact in float32, and the small rest.

    A difference of sums is then exact in the first part and cancels nothing but small numbers in the second. NaN where
    g is above 0 and no decay.
    """
    g = tl.where(g > 0, float("nan"), g.to(tl.float32))
    g = tl.where(g < -128.0, -128.0, g)  # e^-128 is 0 in float32; keeps 64 sums below 2^13
    coarse = tl.floor(g * 1024.0) * 0.0009765625
    return tl.cumsum(coarse, 0), tl.cumsum(g - coarse, 0)


@jit
def last(x, C: tl.constexpr):
    """x[C - 1]."""
    return tl.sum(tl.where(tl.arange(0, C) == C - 1, x, 0.0), 0)


@jit
def decays_since(coarse, fine):
    """e^{G_i} [C]."""
    return tl.exp(coarse + fine)


@jit
def decays_to(coarse, fine, C: tl.constexpr):
    """e^{G_C - G_i} [C]."""
    return tl.exp(tl.minimum((last(coarse, C) - coarse) + (last(fine, C) - fine), 0.0))


@jit
def chunk_decay(coarse, fine, C: tl.constexpr):
    """e^{G_C}."""
    return tl.exp(last(coarse, C) + last(fine, C))


@jit
def decays_between(coarse, fine):
    """e^{G_i - G_j} at [i, j] where i >= j."""
    return tl.exp(tl.minimum((coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :]), 0.0))


@jit
def decays_between_transposed(coarse, fine):
    """e^{G_j - G_i} at [i, j] where i <= j."""
    return tl.exp(tl.minimum((coarse[None, :] - coarse[:, None]) + (fine[None, :] - fine[:, None]), 0.0))


@jit
def unit_lower_inverse(a, C: tl.constexpr, PREC: tl.constexpr):
    """(I + A)^-1 of a strictly lower triangular A [C, C], C = 16, 32 or 64: blocks of 4, then 16, then all of it.

    On every level I + A = (I + B)(I + (I + B)^-1 (A - B)) with B the blocks of the level below. The second factor is
    nilpotent of order 4 in blocks, so a series of two factors inverts it. A series over all of A at once would lose
    every digit on equal keys.
    """
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    eye = tl.where(i == j, 1.0, 0.0)
    below = tl.where(i // 4 == j // 4, a, 0.0)
    inverse = _nilpotent_inverse(below, eye, PREC)
    within = tl.where((i // 16 == j // 16) & (i // 4 != j // 4), a, 0.0)
    rest = tl.dot(inverse, within, input_precision=PREC)
    inverse = tl.dot(_nilpotent_inverse(rest, eye, PREC), inverse, input_precision=PREC)
    if C > 16:
        across = tl.where(i // 16 != j // 16, a, 0.0)
        rest = tl.dot(inverse, across, input_precision=PREC)
        inverse = tl.dot(_nilpotent_inverse(rest, eye, PREC), inverse, input_precision=PREC)
    return inverse


@jit
def _nilpotent_inverse(x, eye, PREC: tl.constexpr):
    """(I + X)^-1 = (I - X)(I + X^2) where X^4 = 0."""
    square = tl.dot(x, x, input_precision=PREC)
    return tl.dot(eye - x, eye + square, input_precision=PREC)
