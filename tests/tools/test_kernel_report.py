"""The kernel report's arithmetic, its tables, and what it says when something is missing or fails."""

import io
import json
import os
import signal
import types

import pytest
import torch
from rich.console import Console

from hybridlm.kernels import gated_delta_rule, operator
from hybridlm.kernels.shared.devices import DEVICES
from hybridlm.lm.parts.errors import UserError
from hybridlm.tools.kernel_report import budgets, compile, report, table
from hybridlm.tools.kernel_report.cases import CASES, Shape, check_covered
from hybridlm.tools.kernel_report.compile import Build, compile_apart, inspect_kernel
from hybridlm.tools.kernel_report.hardware import BOUND_ON, TARGETS, occupancy
from hybridlm.tools.kernel_report.ideal import attention_step, banded_attention, routed_attention
from hybridlm.tools.kernel_report.peers import PEERS, rank
from hybridlm.tools.kernel_report.result import CaseResult, KernelLaunch, Pass, ratios
from hybridlm.tools.kernel_report.roofline import Work, bounds, continued, extrapolate, slowest
from hybridlm.tools.kernel_report.subjects import OURS
from hybridlm.tools.kernel_report.worker import WorkerFailed, ask


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "blocks"),
    [
        ("sm_90", 255, 0, 4, 2),  # 8 warps of 8192 registers
        ("sm_90", 168, 0, 4, 3),  # 12 warps of 5376
        ("sm_90", 169, 0, 4, 2),  # a register more is a unit of 256 more per warp, and partitions hold whole warps
        ("sm_90", 128, 0, 8, 2),
        ("sm_90", 32, 0, 4, 16),  # 64 warps
        ("sm_90", 32, 0, 1, 32),  # block slots
        ("sm_90", 16, 113 * 1024, 4, 2),  # 228 KiB, of which each block reserves 1 more
        ("sm_90", 16, 114 * 1024, 4, 1),
        ("sm_90", 32, 227 * 1024, 4, 1),
        ("sm_90", 32, 227 * 1024 + 1, 4, 0),
        ("sm_80", 32, 163 * 1024, 4, 1),
        ("sm_80", 32, 164 * 1024, 4, 0),
        ("sm_120", 32, 0, 4, 12),  # 48 warps
        ("gfx942", 128, 0, 4, 4),  # 4 waves on each of 4 SIMDs
        ("gfx942", 256, 0, 4, 2),
        ("gfx942", 32, 64 * 1024, 4, 1),
    ],
)
def test_occupancy(target, registers, shared, warps, blocks):
    assert occupancy(TARGETS[target], registers, shared, warps) == blocks


def work(**changes) -> Work:
    return Work(**{"read": 0, "written": 0, "through_l2": 0, "flops": {}, "mufu": 0, "longest": 0} | changes)


@pytest.mark.parametrize(
    ("counts", "programs", "resource", "seconds"),
    [
        (work(read=3.35e9, written=3.35e9), 1000, "hbm", 2e-3),
        (work(flops={"bf16": 989e9}), 1000, "tensor", 1e-3),
        (work(flops={"tf32x3": 495e9, "tf32": 495e9}), 1000, "tensor", 4e-3),
        (work(flops={"fp32": 67e9}), 1000, "tensor", 1e-3),
        (work(through_l2=64 * 1.755e9), 1, "l2", 1.0),  # one processor's port
        (work(through_l2=64 * 1.755e9 * 132), 132, "l2", 1.0),
        (work(through_l2=64 * 1.755e9 * 132), 5000, "l2", 1.0),
        (work(longest=989e9 / 132), 132, "tail", 1e-3),
        (work(longest=989e9 / 132), 133, "tail", 2e-3),  # a second wave
        (work(mufu=16 * 132 * 1.755e9), 132, "mufu", 1.0),
    ],
)
def test_bounds_of_one_resource(counts, programs, resource, seconds):
    found = bounds(counts, DEVICES["H100"], programs)
    assert found[resource] == pytest.approx(seconds)
    assert slowest(found) == resource


def launch(T: int) -> dict:
    return {
        "unique_load_bytes": 100 + 10 * T,
        "unique_store_bytes": 64,
        "sector_bytes": 20 * T,
        "exps": T,
        "flops": {"bf16": 8 * T, "tf32": 5},
        "serial_flops": 3 * T,
    }


def test_counts_are_continued_in_a_line_and_multiplied_by_heads_except_one_programs():
    found = extrapolate([launch(128), launch(256)], (128, 256), 4096, heads=6)
    assert found == Work(
        read=6 * (100 + 40960),
        written=6 * 64,
        through_l2=6 * 20 * 4096,
        flops={"bf16": 6 * 8 * 4096, "tf32": 30},
        mufu=6 * 4096,
        longest=3 * 4096,
    )
    assert extrapolate([launch(1)], (1,), 1, heads=2).read == 2 * 110


def test_attention_is_continued_as_a_square():
    """2 T^2 + 3 T + 5 at three numbers of tokens."""
    at = [2 * T * T + 3 * T + 5 for T in (256, 512, 768)]
    assert continued(at, (256, 512, 768), 4096) == pytest.approx(2 * 4096**2 + 3 * 4096 + 5)
    assert continued([7.0], (1,), 1) == 7.0


def test_more_than_the_ideal_bytes_of_attention_is_named():
    ours = result(OURS, case="head_routed_attention")  # 1500 bytes forward, 3000 backward
    problems = budgets.exceeded([ours], budgets.record([ours]))
    assert problems == [
        "head_routed_attention, sm_90, forward: 1500 bytes; allowed: 1.1 times the ideal 900",
        "head_routed_attention, sm_90, backward: 3000 bytes; allowed: 1.1 times the ideal 2444",
    ]


def test_the_ideal_of_attention_by_hand():
    """Two tokens, one head of 2 channels, both active: 3 seen pairs, a row of 4 bytes."""
    found = routed_attention(Shape(1, 2, 1, 2, 2), active=1.0)
    assert found.flops == (2 * 4 * 1.5, 7 * 4 * 1.5)
    assert found.bytes == (4 * 4 + 4, (6 * 4 + 8) + (6 * 4 + 4))
    assert attention_step(Shape(1, 1, 1, 2, 2), 10, gated=True).bytes == (20 * 4 + 2 * 4 + 4, 0)
    assert attention_step(Shape(1, 1, 1, 2, 2), 10, gated=False).bytes == (20 * 4 + 2 * 4, 0)


def test_the_ideal_of_a_band_by_hand():
    """Four tokens of which a query sees two: 1 + 2 + 2 + 2 pairs."""
    found = banded_attention(Shape(1, 4, 1, 2, 2), span=2)
    assert found.flops == (2 * 4 * 7 / 4, 7 * 4 * 7 / 4)
    assert found.bytes == (4 * 4, 12 * 4)
    assert banded_attention(Shape(1, 8, 1, 2, 2), span=8).flops == (2 * 4 * 4.5, 7 * 4 * 4.5)


def result(subject: str, target: str = "sm_90", scale: float = 1.0, spill: int = 0, case: str = "gated_delta_rule"):
    shape = Shape(1, 4096, 16)
    n = shape.T * shape.H
    build = Build(0.5, None, 4, 2, 128, spill, 1024, 0, 3, 500, {"HGMMA": 12, "LDG": 3})
    one = work(read=1000 * n * scale, written=500 * n * scale, through_l2=2000 * n * scale, flops={"bf16": 3000 * n})
    device = BOUND_ON[target]
    kernels = [KernelLaunch("scan_kernel", {"BT": 64}, 1024, build, one, bounds(one, device, 1024)) for _ in range(2)]
    passes = [Pass(kernels[:1], {"aten.sum": 2}, 100.0 * n), Pass(kernels, {}, 0.0)]
    return CaseResult(case, subject, target, shape, passes, {"forward": 100 * scale, "both": 300 * scale})


def test_tables_show_ratios_and_fit_80_columns():
    results = [result(OURS, scale=0.5, spill=24), result("chunk_gated_delta_rule")]
    console = Console(file=io.StringIO(), width=80)
    table.print_report(results, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "bytes, forward 1x4096x16 750 1500 0.50" in lines
    assert "bytes 1x4096x16 2250 4500 0.50" in lines
    assert "and PyTorch's 2350 4600 0.51" in lines
    assert "launches 1x4096x16 1 + 2 1 + 2 1.00" in lines
    assert "host us, both 150 300 0.50" in lines
    assert "scan_kernel BT64 128 24 1024 3 4 12 HGMMA 500 0.5" in lines
    assert "…" not in text


def test_json_holds_what_the_tables_show():
    ours, peer = result(OURS, scale=0.5), result("chunk_gated_delta_rule")
    found = json.loads(json.dumps(ours.to_json()))
    assert found["bytes"] == [750, 1500]
    assert found["torch_bytes"] == [100, 0]
    assert found["launches"] == [1, 2]
    assert found["bound_us"][1] == pytest.approx(1e6 * 1500 * 4096 * 16 / 3.35e12)
    assert found["passes"][0]["kernels"][0]["build"]["registers"] == 128
    assert ratios(ours, peer)["bound"] == pytest.approx((2250 + 100) / (4500 + 100))


def test_an_operator_with_kernels_and_no_case_is_named_with_the_place_to_add_one(monkeypatch):
    check_covered()
    monkeypatch.setitem(operator.OPERATORS, "cluster_attention", gated_delta_rule)
    with pytest.raises(ValueError, match=r"cluster_attention; add one to CASES in tools/kernel_report/cases\.py"):
        check_covered()


def test_a_registered_kernel_that_no_case_launches_is_named(monkeypatch):
    monkeypatch.setattr(report, "ask", lambda job: {"scan_kernel": "gated_delta_rule", "forgotten": "gated_scan"})
    with pytest.raises(ValueError, match="no case launches forgotten of gated_scan; add one"):
        report.check_launched([result(OURS)])


def test_unknown_operators_and_targets_are_refused():
    with pytest.raises(UserError, match=r"--op is 'gated_delta'; allowed: .*, gated_delta_rule, "):
        report.choose_cases(["gated_delta"])
    assert [case.name for case in report.choose_cases(["gated_scan"])] == ["gated_scan"]
    with pytest.raises(UserError, match="--targets has 'sm_70'; allowed: sm_80, "):
        report.report_kernels([], ["sm_70"], False, [], None, None, Console(file=io.StringIO()))


def test_every_peer_of_a_case_exists():
    assert {peer for case in CASES.values() for peer in case.peers} == set(PEERS)


def test_a_failed_worker_is_reported_with_its_stderr():
    with pytest.raises(WorkerFailed, match=r"job polish \(what=kernels\) failed with exit code 1:\n(.*\n)*.*KeyError"):
        ask("polish", what="kernels")


def test_a_crash_or_an_exception_of_the_compiler_is_that_kernels_row():
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)

    def raises():
        raise RuntimeError("no such instruction\nand more")

    assert compile_apart(dies, TARGETS["sm_90"]).error == "the compiler crashed with signal 9"
    assert compile_apart(raises, TARGETS["sm_90"]).error == "RuntimeError: no such instruction"


def test_more_tensor_memory_than_there_is_is_an_error(monkeypatch):
    monkeypatch.setattr(compile, "_disassemble", lambda cubin: ("  /*0000*/  UTCHMMA ;\n", "REG:64 STACK:0"))
    meta = types.SimpleNamespace(num_warps=4, num_stages=2, shared=0, tmem_size=640)
    kernel = types.SimpleNamespace(metadata=meta, asm={"cubin": b""})
    log = "0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads"
    build = inspect_kernel(kernel, log, TARGETS["sm_100"])
    assert build.error == "needs 640 columns of tensor memory; sm_100 has 512"
    assert (build.registers, build.spill_bytes, build.matrix_instructions) == (64, 8, "1 UTCMMA")
    meta.tmem_size = 512
    assert inspect_kernel(kernel, log, TARGETS["sm_100"]).error is None


def test_the_autotuners_stand_in_takes_the_largest_tile_up_to_the_head_dim():
    def config(warps: int, stages: int, **tiles: int):
        return types.SimpleNamespace(kwargs=tiles, num_warps=warps, num_stages=stages)

    configs = [config(4, 3, BV=128), config(4, 3, BV=32), config(8, 3, BV=64), config(4, 4, BV=64), config(4, 3, BV=64)]
    assert min(configs, key=lambda c: rank(c, 64)) is configs[-1]
    assert min(configs, key=lambda c: rank(c, 128)) is configs[0]


def test_budgets_name_what_grew():
    recorded = budgets.record([result(OURS)])
    assert budgets.exceeded([result(OURS)], recorded) == []
    assert budgets.exceeded([result(OURS, scale=1.005)], recorded) == []
    assert budgets.exceeded([result(OURS, scale=1.02)], recorded) == [
        "gated_delta_rule, sm_90: bytes 4590.0; recorded: 4500.0",
        "gated_delta_rule, sm_90, scan_kernel: bytes 1530.0; recorded: 1500.0",
    ]
    spilled = budgets.exceeded([result(OURS, spill=8)], budgets.record([result(OURS, spill=8)]))
    assert len(spilled) == 3  # not to be recorded away
    assert spilled[0].endswith("spills 8 bytes of registers; allowed: 0")
    on_ampere = budgets.record([result(OURS, target="sm_80", spill=8)])
    assert budgets.exceeded([result(OURS, target="sm_80", spill=8)], on_ampere) == []
    assert budgets.exceeded([result(OURS, target="sm_80", spill=16)], on_ampere) == [
        "gated_delta_rule, sm_80, scan_kernel: spills 16; recorded: 8"
    ]
    assert budgets.exceeded([result(OURS, target="sm_80")], recorded) == [
        "gated_delta_rule, sm_80: no budget; record it with `hybridlm bench kernels --record`"
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_inputs_fit_the_operator(case):
    shape = case.at(Shape(1, 8, 2, 16, 16))
    x = case.inputs(shape, torch.device("cpu"))
    op = getattr(__import__("hybridlm.kernels", fromlist=[case.op]), case.op)
    output = op(**x, **case.numbers(x), backend="reference")
    assert torch.isfinite(output if isinstance(output, torch.Tensor) else output[0]).all()


@pytest.mark.slow
def test_counts_of_the_peers_kernels_are_those_found_by_hand():
    pairs = [["gated_delta_rule", "chunk_gated_delta_rule"], ["gated_linear_attention", "chunk_gla"]]
    answer = ask("count", pairs=pairs, target="sm_90", head_dims=[128, 128], tokens=[256], heads=16)
    found = [
        [
            (len(p["launches"]), sum(x["unique_load_bytes"] + x["unique_store_bytes"] for x in p["launches"]) / 256)
            for p in passes
        ]
        for (passes,) in answer
    ]
    assert found == [[(5, 4844), (7, 11066)], [(5, 6944), (6, 16032)]]
