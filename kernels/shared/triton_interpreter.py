"""Triton's interpreter, made to compute what the hardware computes: the one place where this project works around it.

With TRITON_INTERPRET=1 kernels run on CPU tensors, one program after the other. As shipped in triton 3.7.1 it
- stores bfloat16 as uint16 and adds, compares and multiplies the bit patterns, without an error,
- truncates float32 -> bfloat16, where the hardware rounds to the nearest, ties to even,
- multiplies float32 matrices in full precision whatever `input_precision` says, and refuses bf16x3 and bf16x6,
- hands out loop variables as Python ints, so that `i.to(tl.int64)` fails.
`install()` repairs these, in this process only; the numbers themselves are in `arithmetic.py`.

Upstream calls bfloat16 unsupported in the interpreter and has closed the repairs that were offered:
https://github.com/triton-lang/triton/issues/11584, https://github.com/triton-lang/triton/pull/11585 (dot) and
https://github.com/triton-lang/triton/pull/10945 (arithmetic). A test in tests/kernels/test_interpreter.py runs the
interpreter as shipped and fails once it is right, so that this file can go.
"""

import ast
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from .arithmetic import bfloat16_to_float32, float32_to_bfloat16, multiply


def install() -> None:
    """Does nothing the second time. Kernels that ran before are rewritten at their next launch."""
    builder: Any = interpreter.interpreter_builder
    if isinstance(builder, HardwareBuilder):
        return
    builder.__class__ = HardwareBuilder
    builder.options = dataclasses.replace(
        builder.options,
        allowed_dot_input_precisions=("tf32", "tf32x3", "ieee", "bf16x3", "bf16x6"),
        sanitize_overflow=False,  # a quarter of the time, for offsets that tests are too small to overflow
    )
    patched: Any = interpreter
    patched._patch_lang = patch_language_once
    patched.device_range = device_range
    patched.FunctionRewriter.ast_transformer = LoopTransformer()
    patched.InterpretedFunction.rewritten_fn.clear()
    patched.ScanOps.generic_scan = scan_in_log_steps
    patched.ReduceOps.generic_reduce = reduce_in_log_steps
    patched.ReduceOps.sum = sum_values


class HardwareBuilder(InterpreterBuilder):
    """Computes on the values of bfloat16 tensors, and dots in the precision asked for."""

    def binary_op(self, lhs, rhs, op):
        if _is_bfloat16(lhs):
            return _rounded(op(_values(lhs), _values(rhs)))
        return super().binary_op(lhs, rhs, op)

    def unary_op(self, arg, op):
        return _rounded(op(_values(arg))) if _is_bfloat16(arg) else super().unary_op(arg, op)

    def create_clampf(self, arg, lo, hi, propagate_nans):
        if _is_bfloat16(arg):
            return _rounded(np.clip(_values(arg), _values(lo), _values(hi)))
        return super().create_clampf(arg, lo, hi, propagate_nans)

    def create_fma(self, x, y, z):
        if not z.dtype.scalar.is_floating():
            return super().create_fma(x, y, z)
        left, right, term = (_values(operand).astype(np.float64) for operand in (x, y, z))
        fused = TensorHandle(left * right + term, tl.float64)  # the product is not rounded on its own
        return self.cast_impl(fused, z.dtype)

    def get_bf16(self, value):
        return _rounded(np.array([value], np.float32))

    def cast_impl(self, src, dst_type):
        if _is_bfloat16(src):
            src = TensorHandle(_values(src), tl.float32)
        if dst_type.scalar == tl.bfloat16:
            return _rounded(src.data.astype(np.float32))
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if dst_type.scalar == tl.bfloat16 and src.dtype.scalar.primitive_bitwidth >= 16:
            toward_zero = rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ
            return TensorHandle(float32_to_bfloat16(_values(src).astype(np.float32), toward_zero), tl.bfloat16)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar == tl.float32:
            return TensorHandle(multiply(a.data, b.data, input_precision.name) + d.data, d.dtype.scalar)
        if a.dtype.scalar in (tl.bfloat16, tl.float16) and d.dtype.scalar == tl.float32:  # products exact in float32
            product = np.matmul(_values(a).astype(np.float32), _values(b).astype(np.float32))
            return TensorHandle(product + d.data, tl.float32)
        return super().create_dot(a, b, d, input_precision, max_num_imprecise_acc)


def _is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _values(handle: TensorHandle) -> np.ndarray:
    return bfloat16_to_float32(handle.data) if _is_bfloat16(handle) else handle.data


def _rounded(values: np.ndarray) -> TensorHandle:
    """A bfloat16 tensor of these values; truth values stay what they are."""
    if values.dtype == np.bool_:
        return TensorHandle(values, tl.int1)
    return TensorHandle(float32_to_bfloat16(values), tl.bfloat16)


patch_language: Any = interpreter._patch_lang


def patch_language_once(fn: Any) -> Any:
    """Triton replaces the whole language anew at every call of a device function; once per launch is enough."""
    seen = [module for module in (tl, tl.core) if any(x is module for x in fn.__globals__.values())]
    if not seen or any(tl.core.is_builtin(module.load) for module in seen):
        return patch_language(fn)
    return interpreter._LangPatchScope()


class LoopTransformer(interpreter.ASTTransformer):
    """Loop variables of range and tl.range become tensors; those of tl.static_range are constants on a device too."""

    def visit_For(self, node: ast.For) -> ast.For:
        self.generic_visit(node)
        called = node.iter.func if isinstance(node.iter, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else None
        if name == "range":
            wrapper = ast.Name(id=device_range.__name__, ctx=ast.Load())
            node.iter = ast.Call(func=wrapper, args=[node.iter], keywords=[])
        return node


def device_range(values: Iterable[int]) -> Iterator[Any]:
    """The values as scalar tensors, int32 where they fit."""
    for value in values:
        yield interpreter.interpreter_semantic.to_tensor(value, False)


def _combine(operation: Any, left: list[np.ndarray], right: list[np.ndarray], dtypes: list[Any]) -> list[np.ndarray]:
    """The operation's combine function on whole arrays."""
    operands = [operation.to_tensor(x, dtype) for x, dtype in zip((*left, *right), (*dtypes, *dtypes), strict=True)]
    with np.errstate(all="ignore"):
        combined = operation.combine_fn.fn(*operands)
    combined = combined if isinstance(combined, tuple) else (combined,)
    return [np.broadcast_to(x.handle.data, right[0].shape) for x in combined]


def scan_in_log_steps(self: Any, input: tuple[Any, ...]) -> list[Any]:
    """associative_scan by doubling distances, like a warp: log2(n) combines where triton's loop takes n per row."""
    data, dtypes = [x.handle.data for x in input], [x.dtype for x in input]
    length, ndim = data[0].shape[self.axis], data[0].ndim
    position = np.arange(length).reshape([-1 if i == self.axis % ndim else 1 for i in range(ndim)])
    distance = 1
    while distance < length:
        shifted = [np.roll(x, distance, self.axis) for x in data]
        combined = _combine(self, shifted, data, dtypes)
        data = [np.where(position >= distance, new, x) for new, x in zip(combined, data, strict=True)]
        distance *= 2
    return [self.to_tensor(x, dtype) for x, dtype in zip(data, dtypes, strict=True)]


def reduce_in_log_steps(self: Any, input: tuple[Any, ...]) -> list[Any]:
    """tl.reduce with a combine function of one's own, neighbours first."""
    axis, dtypes, ndim = self.axis, [x.dtype for x in input], input[0].handle.data.ndim
    data = [x.handle.data.flatten() if axis is None else np.moveaxis(x.handle.data, axis, 0) for x in input]
    while len(data[0]) > 1:
        data = _combine(self, [x[::2] for x in data], [x[1::2] for x in data], dtypes)
    data = [x[0] for x in data]
    if self.keep_dims:
        data = [np.expand_dims(x, tuple(range(ndim)) if axis is None else axis) for x in data]
    return [self.to_tensor(x, dtype) for x, dtype in zip(data, dtypes, strict=True)]


numpy_sum: Any = interpreter.ReduceOps.sum


def sum_values(self: Any, input: Any) -> Any:
    """tl.sum, in bfloat16 rounded after every addition."""
    return reduce_in_log_steps(self, (input,))[0] if input.dtype == tl.bfloat16 else numpy_sum(self, input)
