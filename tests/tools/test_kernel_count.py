"""Counts of kernels small enough to count by hand, and of a library's kernels against figures worked out before."""

import os
import subprocess
import sys

import pytest
import torch

from hybridlm.tools.kernel_report.count import SECTOR, LaunchCount, TorchOp, count
from hybridlm.tools.kernel_report.trace import Observer, TracedLaunch, observe

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled here")

N = 64


def only(launches: list[LaunchCount]) -> LaunchCount:
    assert len(launches) == 1
    return launches[0]


@triton.jit
def add_kernel(x, y, out, n, STRIDE: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + i, tl.load(x + i * STRIDE, mask=i < n) + tl.load(y + tl.arange(0, N)), mask=i < n)


def add(n: int, stride: int = 1, dtype: torch.dtype = torch.float32) -> LaunchCount:
    """x [n * stride] + y [N], in programs of N."""
    x, y, out = torch.zeros(n * stride, dtype=dtype), torch.zeros(N, dtype=dtype), torch.empty(n, dtype=dtype)
    with count() as counts:
        add_kernel[(triton.cdiv(n, N),)](x, y, out, n, stride, N=N, num_warps=2)
    return only(counts.launches)


def test_bytes_of_two_full_programs():
    found = add(2 * N)
    assert (found.kernel, found.programs) == ("add_kernel", 2)
    assert found.constexprs == {"STRIDE": 1, "N": N, "num_warps": 2}
    assert (found.load_bytes, found.store_bytes) == (2 * 2 * N * 4, 2 * N * 4)
    assert (found.unique_load_bytes, found.unique_store_bytes) == (3 * N * 4, 2 * N * 4), "y is read from HBM once"
    assert found.sector_bytes == found.load_bytes + found.store_bytes
    assert found.by_argument == {"x": (2 * N * 4, 0), "y": (N * 4, 0), "out": (0, 2 * N * 4)}
    assert (found.flops, found.exps, found.serial_flops) == ({}, 0, 0.0)


def test_masked_lanes_move_nothing_and_sectors_are_whole():
    found = add(N + 1)
    assert found.load_bytes == (N + 1 + 2 * N) * 4
    assert found.store_bytes == (N + 1) * 4
    assert found.by_argument == {"x": (N * 4 + SECTOR, 0), "y": (N * 4, 0), "out": (0, N * 4 + SECTOR)}
    assert found.sector_bytes == 2 * (N * 4 + SECTOR) + 2 * N * 4


def test_strided_loads_take_a_sector_each():
    found = add(N, stride=8)
    assert found.by_argument["x"] == (N * SECTOR, 0)
    assert found.load_bytes == 2 * N * 4


def test_narrow_elements():
    found = add(N, dtype=torch.bfloat16)
    assert (found.unique_load_bytes, found.unique_store_bytes) == (2 * N * 2, N * 2)


@triton.jit
def views_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i))


def test_arguments_of_one_storage_are_told_apart():
    whole = torch.zeros(2 * N)
    with count() as counts:
        views_kernel[(1,)](whole[N:], whole[:N], N)
    assert only(counts.launches).by_argument == {"x": (N * 4, 0), "y": (0, N * 4)}


@triton.jit
def dot_kernel(a, b, out, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x, y = tl.load(a + m[:, None] * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :])
    product = tl.zeros([M, N], tl.float32)
    for _ in range(tl.program_id(0) + 1):
        product = tl.dot(x, y, product, input_precision=PRECISION)
    tl.store(out + (tl.program_id(0) * M + m[:, None]) * N + n[None, :], tl.exp(product))


@pytest.mark.parametrize(
    ("dtype", "precision", "kind", "weight"),
    [
        (torch.bfloat16, "tf32", "bf16", 1),
        (torch.float16, "ieee", "bf16", 1),
        (torch.float32, "tf32", "tf32", 2),
        (torch.float32, "tf32x3", "tf32x3", 6),
        (torch.float32, "bf16x3", "bf16x3", 3),
        (torch.float32, "ieee", "fp32", 14.8),
    ],
)
def test_dot_flops(dtype: torch.dtype, precision: str, kind: str, weight: float):
    M, N, K = 16, 32, 64
    a, b, out = torch.zeros(M, K, dtype=dtype), torch.zeros(K, N, dtype=dtype), torch.empty(2, M, N)
    with count() as counts:
        dot_kernel[(2,)](a, b, out, precision, M, N, K)
    found, one = only(counts.launches), 2 * M * N * K
    assert found.flops == {kind: 3 * one}  # one dot in program 0, two in program 1
    assert found.serial_flops == 2 * one * weight
    assert found.exps == 2 * M * N


@triton.jit
def atomic_kernel(counter, N: tl.constexpr):
    tl.atomic_add(counter + tl.arange(0, N), 1.0)


def test_atomics_count_as_stores():
    with count() as counts:
        atomic_kernel[(3,)](counter := torch.zeros(N), N)
    found = only(counts.launches)
    assert counter.eq(3).all()
    assert (found.load_bytes, found.store_bytes, found.unique_store_bytes) == (0, 3 * N * 4, N * 4)


def test_torch_operations_between_launches():
    x = torch.zeros(N, N)
    with count() as counts:
        total = torch.empty(N, N).copy_(x).view(-1)[None].sum(0)  # the views move nothing
        total.add_(total)
        torch.zeros_like(x)
        x[:1].expand(N, N).clone()
    four = 4 * N * N
    assert counts.torch_ops == {
        "aten.copy_.default": TorchOp(1, 2 * four),
        "aten.sum.dim_IntList": TorchOp(1, 2 * four),
        "aten.add_.Tensor": TorchOp(1, 3 * four),
        "aten.zeros_like.default": TorchOp(1, four),
        "aten.clone.default": TorchOp(1, four + 4 * N),
    }
    assert counts.torch_bytes == 9 * four + 4 * N
    assert counts.launches == []


def test_launches_are_not_torch_operations_and_counting_ends():
    y = torch.zeros(N)
    with count() as counts:
        views_kernel[(1,)](torch.ones(N), y, N)
        views_kernel[(1,)](y, torch.empty(N), N)
    views_kernel[(1,)](y, torch.empty(N), N)
    assert [launch.kernel for launch in counts.launches] == ["views_kernel"] * 2
    assert set(counts.torch_ops) <= {"aten.ones.default"}


class Tensors(Observer):
    def launch_begins(self, launch: TracedLaunch) -> None:
        self.launch = launch


def test_launch_names_its_arguments():
    x, y, observer = torch.ones(N), torch.zeros(N), Tensors()
    with observe(observer):
        views_kernel[(1,)](y=y, x=x, N=N)
    assert observer.launch.kernel == "views_kernel"
    assert observer.launch.constexprs == {"N": N}
    assert {name: tensor.data_ptr() for name, tensor in observer.launch.tensors.items()} == {
        "x": x.data_ptr(),
        "y": y.data_ptr(),
    }


LIBRARY = """
import torch
from hybridlm.tools.kernel_report.count import count
from hybridlm.tools.kernel_report.hardware import TARGETS
from hybridlm.tools.kernel_report.peers import rank
from hybridlm.tools.kernel_report.pretend import PretendedGPU
PretendedGPU(TARGETS["sm_90"], lambda config: rank(config, 64))
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.gla import chunk_gla
T, K = 256, 64
def inputs(): return [torch.zeros(1, T, 1, K, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
gate = torch.zeros(1, T, 1, requires_grad=True)
cases = {
    "gated_delta_rule": lambda: chunk_gated_delta_rule(
        *inputs(), gate, torch.zeros(1, T, 1, dtype=torch.bfloat16, requires_grad=True), output_final_state=True),
    "gla": lambda: chunk_gla(*inputs(), torch.zeros(1, T, 1, K, requires_grad=True), output_final_state=True),
}
for forward in cases.values():
    with count() as there:
        o = forward()[0]
    with count() as back:
        o.backward(torch.zeros_like(o))
    for counts in there, back:
        moved = sum(x.unique_load_bytes + x.unique_store_bytes for x in counts.launches)
        print(len(counts.launches), moved // T, end=" ")
"""


@pytest.mark.slow
def test_flash_linear_attention():
    """Launches and unique bytes per token of a head with K = V = 64, forward and backward, in bfloat16."""
    pytest.importorskip("fla")
    environment = os.environ | {"TRITON_INTERPRET": "1", "FLA_CACHE_RESULTS": "0"}
    command = [sys.executable, "-W", "ignore", "-c", LIBRARY]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert list(map(int, run.stdout.split())) == [5, 2220, 7, 5106, 5, 3360, 6, 7008]
