"""Numbers as the hardware has them, in numpy: bfloat16, and the products of its tensor cores.

Not modelled: the order of accumulation inside a dot, flushed subnormals, and the error of the fast exp2 (about 1e-7).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np

TF32Rounding = Literal["rna", "rz"]

_rounding: TF32Rounding | None = None


@contextmanager
def tf32(rounding: TF32Rounding | None) -> Iterator[None]:
    """Within it, float32 dots lose what tensor cores lose: `input_precision` "tf32" keeps 10 bits of each operand's
    mantissa; "tf32x3", "bf16x3" and "bf16x6" add up products of split operands; "ieee" stays exact.

    rounding: "rna" to nearest, ties away from 0, as if converted by cvt.rna.tf32; "rz" drops the bits, as tensor cores
    do with unconverted operands; None multiplies in full float32.
    """
    global _rounding
    if rounding not in ("rna", "rz", None):
        raise ValueError(f'rounding is {rounding!r}; allowed: "rna", "rz" or None')
    before, _rounding = _rounding, rounding
    try:
        yield
    finally:
        _rounding = before


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Values of bfloat16 bit patterns (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(x: np.ndarray, toward_zero: bool = False) -> np.ndarray:
    """Bit patterns (uint16) of x rounded to the nearest bfloat16, ties to even, or towards zero."""
    bits = np.asarray(x, np.float32, order="C").view(np.uint32)
    if not toward_zero:
        bits = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)  # may carry into the exponent, up to inf
    return np.where(np.isnan(x), np.uint32(0x7FFF), bits >> 16).astype(np.uint16)


def multiply(a: np.ndarray, b: np.ndarray, precision: str) -> np.ndarray:
    """float32 a @ b as a dot with this `input_precision`: exact products outside of `tf32`, see there."""
    precision = precision.lower()
    if _rounding is None or precision == "ieee":
        return np.matmul(a, b)
    if precision == "tf32":
        return np.matmul(_to_tf32(a), _to_tf32(b))
    to_format, terms = {"tf32x3": (_to_tf32, 2), "bf16x3": (_to_bf16, 2), "bf16x6": (_to_bf16, 3)}[precision]
    a_parts, b_parts = _split(a, to_format, terms), _split(b, to_format, terms)
    # the smallest products first; those below the last part's own size are left out
    pairs = [(i, total - i) for total in reversed(range(terms)) for i in range(total + 1)]
    return functools.reduce(np.add, (np.matmul(a_parts[i], b_parts[j]) for i, j in pairs))


def _split(x: np.ndarray, to_format: Callable[[np.ndarray], np.ndarray], terms: int) -> list[np.ndarray]:
    """x as a sum of `terms` numbers of a shorter format, the largest first."""
    parts = []
    for _ in range(terms):
        parts.append(to_format(x))
        x = x - parts[-1]
    return parts


def _to_tf32(x: np.ndarray) -> np.ndarray:
    """x with 10 bits of mantissa."""
    bits = np.asarray(x, np.float32, order="C").view(np.uint32)
    if _rounding == "rna":
        bits = bits + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _to_bf16(x: np.ndarray) -> np.ndarray:
    return bfloat16_to_float32(float32_to_bfloat16(x))
