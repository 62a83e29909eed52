"""Every sanitizer catches the bug it is there for, and none of them complains about a sound kernel."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from triton.runtime.errors import InterpreterError  # noqa: E402

from hybridlm.tests.kernels.sanitize import KernelFault, sanitized  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled here")

N = 16
FAULT = (KernelFault, InterpreterError)


@triton.jit
def copy_kernel(x, y, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


def test_a_sound_kernel_passes():
    x = torch.randn(50)
    with sanitized() as launched:
        y = torch.empty(50)
        copy_kernel[(4,)](x, y, 50, N)
        copy_kernel[(4,)](y, z := torch.empty(50), 50, N)  # what the first one wrote
        copy_kernel[(1,)](torch.zeros(0), torch.empty(0), 0, N)
    assert torch.equal(x, z)
    assert launched == ["copy_kernel"] * 3


@pytest.mark.parametrize(("n_x", "n_y", "kind"), [(49, 64, "load"), (64, 49, "store")])
def test_out_of_bounds(n_x: int, n_y: int, kind: str):
    x, y = torch.randn(n_x), torch.zeros(n_y)
    with pytest.raises(FAULT, match=rf"copy_kernel: {kind} out of bounds in program \(3, 0, 0\)"), sanitized():
        copy_kernel[(4,)](x, y, 50, N)


@triton.jit
def gather_kernel(x, index, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + tl.load(index + i)))


def test_one_access_must_stay_inside_one_argument():
    """An address far off that happens to be another tensor's is out of bounds all the same."""
    x, y = torch.randn(N), torch.zeros(N)
    elements = (y.data_ptr() - x.data_ptr()) // 4
    index = torch.arange(N)
    index[3] = elements
    with pytest.raises(FAULT, match="gather_kernel: load out of bounds"), sanitized():
        gather_kernel[(1,)](x, index, y, N)


def test_tensor_that_nobody_wrote():
    with pytest.raises(FAULT, match=r"copy_kernel: load of 16 elements that nothing wrote.*argument x"), sanitized():
        copy_kernel[(1,)](torch.empty(N), torch.empty(N), N, N)


def test_element_that_nobody_wrote():
    with sanitized():
        x = torch.empty(2, N)
        x[:, 1:] = 1.0
        x[0, 0] = 1.0
        copy_kernel[(1,)](x, y := torch.empty(2 * N), N, N)  # row 0 is whole
        with pytest.raises(FAULT, match="load of 1 elements that nothing wrote, in program"):
            copy_kernel[(2,)](x, y, 2 * N, N)


def test_what_torch_writes_counts_as_written():
    with sanitized():
        written = [torch.empty(N).fill_(1), torch.empty(2, N).t().copy_(torch.ones(N, 2)), torch.ones(N)]
        torch.add(written[2], 1, out=(out := torch.empty(N)))
        for x in (*written, out, torch.empty_like(out).copy_(out)):
            copy_kernel[(1,)](x, torch.empty(N), N, N)


def test_output_that_no_kernel_writes_is_nan():
    with sanitized():
        y = torch.empty(N)
        copy_kernel[(1,)](torch.ones(N), y, N - 1, N)
    assert y[:-1].eq(1).all() and y[-1].isnan()
    assert not torch.are_deterministic_algorithms_enabled()


@triton.jit
def write_first_kernel(y, VALUE: tl.constexpr):
    tl.store(y + tl.program_id(0) * 0, VALUE)


def test_two_programs_write_one_address():
    fault = "write_first_kernel: 1 addresses written by more than one program, argument y"
    with pytest.raises(FAULT, match=fault), sanitized():
        write_first_kernel[(2,)](torch.zeros(4), 1.0)
    with sanitized():
        write_first_kernel[(1,)](torch.zeros(4), 1.0)


@triton.jit
def shift_kernel(y, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + N + i, tl.load(y + i) + 1)


def test_a_program_reads_what_another_writes():
    y = torch.zeros(3 * N)
    fault = f"shift_kernel: {N} addresses written by one program and read by another"
    with pytest.raises(FAULT, match=fault), sanitized():
        shift_kernel[(2,)](y, N)
    with sanitized():
        shift_kernel[(1,)](y, N)


@triton.jit
def in_place_kernel(y, TWICE: tl.constexpr, BARRIER: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + i, tl.load(y + i) + 1)
    if BARRIER:
        tl.debug_barrier()
    if TWICE:
        tl.store(y + i, tl.load(y + i) + 1)


def test_a_program_reads_what_its_other_threads_may_not_have_written():
    fault = f"in_place_kernel: load of {N} addresses that program .* itself stored to, with no barrier in between"
    with pytest.raises(FAULT, match=fault), sanitized():
        in_place_kernel[(2,)](torch.zeros(2 * N), True, False, N)
    with sanitized():
        in_place_kernel[(2,)](y := torch.zeros(2 * N), False, False, N)
        in_place_kernel[(2,)](y, True, True, N)
    assert y.eq(3).all()


@triton.jit
def colliding_kernel(y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i // 2, i)


def test_two_lanes_store_to_one_address():
    with pytest.raises(FAULT, match="colliding_kernel: several lanes of a store share an address"), sanitized():
        colliding_kernel[(1,)](torch.zeros(N, dtype=torch.int32), N)


@triton.jit
def ticket_kernel(counter, y, READ: tl.constexpr):
    tl.store(y + tl.program_id(0), tl.atomic_add(counter, 1))
    if READ:
        tl.store(y + tl.num_programs(0) + tl.program_id(0), tl.load(counter))


def tickets(seed: int) -> list[int]:
    """The place of each program in the order of execution."""
    y = torch.zeros(6, dtype=torch.int32)
    with sanitized(seed):
        ticket_kernel[(6,)](torch.zeros(1, dtype=torch.int32), y, False)
    return y.tolist()


def test_programs_run_in_an_order_of_the_seed():
    orders = [tickets(seed) for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert [sorted(order) for order in orders] == [list(range(6))] * 3
    assert list(range(6)) not in orders


def test_atomics_meet_atomics_only():
    y = torch.zeros(12, dtype=torch.int32)
    with pytest.raises(FAULT, match="1 addresses updated atomically by one program and read by another"), sanitized():
        ticket_kernel[(6,)](torch.zeros(1, dtype=torch.int32), y, True)


@triton.jit
def helper(x, i):
    return tl.load(x + i)


@triton.jit
def nested_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, helper(x, i))


def test_device_functions_are_watched():
    with pytest.raises(FAULT, match="nested_kernel: load out of bounds"), sanitized():
        nested_kernel[(1,)](torch.zeros(N - 1), torch.zeros(N), N)


@triton.jit
def block_pointer_kernel(x, y, rows, columns, N: tl.constexpr):
    block = tl.make_block_ptr(x, (rows, columns), (columns, 1), (0, 0), (N, N), (1, 0))
    i = tl.arange(0, N)
    tl.store(y + i[:, None] * N + i[None, :], tl.load(block, boundary_check=(0,)))


def test_block_pointers_are_watched():
    y = torch.zeros(N, N)
    with sanitized():
        block_pointer_kernel[(1,)](torch.ones(5, N), y, 5, N, N)
    assert y.sum() == 5 * N
    with pytest.raises(FAULT, match="block_pointer_kernel: load out of bounds"), sanitized():
        block_pointer_kernel[(1,)](torch.ones(5, N), y, 6, N, N)
