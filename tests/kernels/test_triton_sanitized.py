"""Every Triton kernel, forward and backward, through every sanitizer, in float32 and in bfloat16.

A kernel that is registered in `triton_common.KERNELS` and launched by no case here fails the last test.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridlm import kernels
from hybridlm.kernels.shared.arithmetic import tf32
from hybridlm.tests.kernels.adversarial import inputs
from hybridlm.tests.kernels.sanitize import sanitized
from hybridlm.tests.oracles import relative_rms

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled here")

BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=["float32", "bfloat16"])
Arguments = dict[str, Tensor | None]


@dataclass(frozen=True)
class Case:
    """`launches`: the kernels it is there for, all of them and no others."""

    op: str
    launches: set[str]
    inputs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # arguments that are None

    def arguments(self, dtype: torch.dtype, **sizes: int) -> Arguments:
        drawn = inputs(self.op, **sizes | self.inputs)
        drawn = {name: x if x is None or name == "initial_state" else x.to(dtype) for name, x in drawn.items()}
        return drawn | dict.fromkeys(self.without)


SCANS = {"chunk_scan_forward", "chunk_scan_backward"}
DELTA = {"delta_prepare", "delta_gradients", *SCANS}
PER_CHANNEL = {"prepare_vector", "gradients_vector", *SCANS}
PER_HEAD = {"gradients_scalar", *SCANS}
SCAN = {"scan_forward", "scan_backward"}
CHUNKED = {"chunk_size": 32}
RECOMPUTE = {"chunk_size": 32, "recompute": True}
INPUTS = {"H": 2, "K": 24, "V": 40}
DELTA_INPUTS = {**INPUTS, "HV": 4}

CASES = {
    "delta": Case("gated_delta_rule", DELTA, DELTA_INPUTS, CHUNKED),
    "delta-recomputed": Case("gated_delta_rule", DELTA, DELTA_INPUTS, RECOMPUTE),
    "delta-without-gate": Case("gated_delta_rule", DELTA, DELTA_INPUTS, CHUNKED, without=("g",)),
    "per-channel": Case("gated_linear_attention", PER_CHANNEL, INPUTS, CHUNKED),
    "per-channel-recomputed": Case("gated_linear_attention", PER_CHANNEL, INPUTS, RECOMPUTE),
    "per-head": Case("gated_linear_attention", PER_HEAD, {**INPUTS, "gate": "head"}, CHUNKED),
    "per-head-recomputed": Case("gated_linear_attention", PER_HEAD, {**INPUTS, "gate": "head"}, RECOMPUTE),
    "no-gate": Case("gated_linear_attention", PER_HEAD, {**INPUTS, "gate": None}, CHUNKED),
    "scan": Case("gated_scan", SCAN, {"K": 24}),
    "scan-in-segments": Case("gated_scan", {"scan_segment_ends", *SCAN}, {"K": 24, "T": 300}),
}
STEPS = {
    "delta": Case("gated_delta_rule", {"delta_step"}, DELTA_INPUTS),
    "delta-without-gate": Case("gated_delta_rule", {"delta_step"}, DELTA_INPUTS, without=("g",)),
    "per-channel": Case("gated_linear_attention", {"linear_attention_step"}, INPUTS),
    "per-head": Case("gated_linear_attention", {"linear_attention_step"}, {**INPUTS, "gate": "head"}),
    "no-gate": Case("gated_linear_attention", {"linear_attention_step"}, {**INPUTS, "gate": None}),
    "scan": Case("gated_scan", {"scan_step"}, {"K": 24}),
}


def forward_and_backward(case: Case, arguments: Arguments, backend: str) -> dict[str, Tensor]:
    """o, the final state and all gradients of two documents, one of them short, with an empty one in between."""
    leaves = {name: None if x is None else x.clone().requires_grad_() for name, x in arguments.items()}
    *inputs, initial_state = leaves.values()
    assert inputs[0] is not None
    o, state = getattr(kernels, case.op)(
        *inputs,
        initial_state=initial_state,
        output_final_state=True,
        cu_seqlens=torch.tensor([0, 20, 20, inputs[0].shape[1]]),
        backend=backend,
        **case.options,
    )
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=rng).to(x) for x in (o, state)]
    given = {name: x for name, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad([o, state], list(given.values()), cotangents)
    return {"o": o, "state": state} | {f"d{name}": x for name, x in zip(given, gradients, strict=True)}


def step(case: Case, arguments: Arguments, backend: str) -> dict[str, Tensor]:
    """One token of each sequence: o and the state."""
    *inputs, state = arguments.values()
    assert state is not None
    token, state = [None if x is None else x[:, 0] for x in inputs], state.clone()
    o = getattr(kernels, f"{case.op}_step")(*token, state=state, backend=backend)
    return {"o": o, "state": state}


def check(case: Case, arguments: Arguments, run: Callable[..., dict[str, Tensor]], bound: float) -> None:
    """The sanitized result, in the precision of tensor cores, agrees with the reference on the same rounded inputs."""
    with tf32("rna"), sanitized(seed=1) as launched:
        found = run(case, arguments, "triton")
    assert set(launched) == case.launches
    wide = {name: None if x is None else x.float() for name, x in arguments.items()}
    expected = run(case, wide, "reference")
    errors = {name: relative_rms(found[name], x) for name, x in expected.items()}
    assert max(errors.values()) < bound, errors


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name: str, dtype: torch.dtype):
    case = CASES[name]
    check(case, case.arguments(dtype, n=3, T=60), forward_and_backward, BOUNDS[dtype])


@DTYPES
@pytest.mark.parametrize("name", STEPS)
def test_step(name: str, dtype: torch.dtype):
    case = STEPS[name]
    check(case, case.arguments(dtype, B=3, T=1), step, BOUNDS[dtype])


BANDED = {"band_forward", "band_query_gradient", "band_key_gradients"}
ROUTED = {"routed_order", *BANDED}
ATTENTION_STEP = {"band_step", "band_step_merge"}


def attention(dtype: torch.dtype, *lead: int) -> list[Tensor]:
    """q, k, v of grouped heads and a gate that is 0 for half of the pairs."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*lead, heads, 24, generator=rng).to(dtype) for heads in (4, 2, 2))
    return [q, k, v, (torch.rand(*lead, 4, generator=rng) - 0.5).relu()]


OPS = pytest.mark.parametrize("op", ["banded_attention", "head_routed_attention"])


def given_to(op: str, inputs: list[Tensor]) -> list[Tensor]:
    return inputs if op == "head_routed_attention" else inputs[:3]


@DTYPES
@OPS
@pytest.mark.parametrize("band", [{"sink": None, "window": None}, {"sink": 3, "window": 20}], ids=["causal", "window"])
def test_attention(op: str, band: dict[str, int | None], dtype: torch.dtype):
    inputs, cu_seqlens = given_to(op, attention(dtype, 1, 60)), torch.tensor([0, 20, 20, 60])

    def run(backend: str, given: list[Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in given]
        o = getattr(kernels, op)(*leaves, cu_seqlens=cu_seqlens, backend=backend, **band)
        cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o)
        return [o, *torch.autograd.grad(o, leaves, cotangent)]

    with tf32("rna"), sanitized(seed=1) as launched:
        found = run("triton", inputs)
    assert set(launched) == (ROUTED if op == "head_routed_attention" else BANDED)
    expected = run("reference", [x.float() for x in inputs])
    errors = [relative_rms(x, y) for x, y in zip(found, expected, strict=True)]
    assert max(errors) < BOUNDS[dtype], errors


@DTYPES
@OPS
def test_attention_step(op: str, dtype: torch.dtype):
    q, k, v, gate = attention(dtype, 2, 70)
    given = given_to(op, [q[:, 0], k, v, gate[:, 5]])
    seen = torch.arange(70).expand(2, -1) % 3 != 1
    step = getattr(kernels, f"{op}_step")
    with tf32("rna"), sanitized(seed=1) as launched:
        found = step(*given, seen=seen, backend="triton")
    assert set(launched) == ATTENTION_STEP
    expected = step(*(x.float() for x in given), seen=seen, backend="reference")
    assert relative_rms(found, expected) < BOUNDS[dtype]


def test_every_kernel_has_a_case():
    root = Path(kernels.__file__).parent
    for file in root.rglob("triton_*.py"):
        importlib.import_module(".".join([kernels.__name__, *file.relative_to(root).with_suffix("").parts]))
    from hybridlm.kernels.shared.triton_common import KERNELS

    covered = ROUTED.union(ATTENTION_STEP, *(case.launches for case in (*CASES.values(), *STEPS.values())))
    assert covered == set(KERNELS)
