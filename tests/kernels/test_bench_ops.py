"""The benchmark measures what it says: every backend and its peer compute the same, both passes, all dtypes."""

import io

import pytest
import torch
from rich.console import Console

from hybridlm.tests.oracles import assert_close
from hybridlm.tools import bench_ops as module
from hybridlm.tools.bench_cases import CASES

SHAPE = (1, 64, 2, 8, 8)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backends_and_peer_compute_the_same(case):
    inputs = case.make(SHAPE, torch.float32)
    peer = case.expected(inputs)
    assert "chunked" in case.backends()
    for backend in case.backends():
        assert_close(case.call(inputs, backend, 32)().reshape(peer.shape), peer, 1e-5, backend)


def test_flops_of_the_recurrences():
    flops = {case.op.name: case.flops((1, 1, 1, 3, 5), False) for case in CASES}
    del flops["head_routed_attention"], flops["banded_attention"]
    assert flops == {"gated_delta_rule": 90, "gated_linear_attention": 60, "gated_scan": 0}
    assert CASES[0].flops((2, 7, 3, 3, 5), True) == 3 * 2 * 7 * 3 * 90


def test_flops_of_attention_are_the_active_pairs():
    routed = [case for case in CASES if case.op.name == "head_routed_attention"]
    assert [case.flops((2, 3, 4, 5, 5), False) for case in routed] == [4 * 2 * 6 * 4 * 5 * a for a in (1, 0.75, 0.5)]
    assert routed[0].flops((2, 3, 4, 5, 5), True) == 14 * 2 * 6 * 4 * 5


def test_flops_of_a_band_are_the_pairs_that_are_seen():
    dense, half, quarter = (case for case in CASES if case.op.name == "banded_attention")
    assert dense.flops((2, 3, 4, 5, 5), False) == 4 * 2 * 4 * 5 * (1 + 2 + 3)
    assert half.flops((2, 8, 4, 5, 5), True) == 14 * 2 * 4 * 5 * (1 + 2 + 3 + 5 * 4)
    assert quarter.flops((2, 8, 4, 5, 5), False) == 4 * 2 * 4 * 5 * (1 + 7 * 2)


def test_only_the_operators_asked_for_are_measured(monkeypatch):
    measured = []
    monkeypatch.setattr(module, "_compare", lambda case, *args: measured.append(case.name) or [])
    monkeypatch.setattr(module, "_print_rows", lambda rows, console: None)
    monkeypatch.setattr(module, "_mm_peak", lambda dtype: 1e11)
    module.bench_ops((1,), only="gated_l", console=Console(file=io.StringIO()))
    assert {name.partition(",")[0] for name in measured} == {"gated_linear_attention"}


def test_rows_cover_every_backend_dtype_and_pass(monkeypatch):
    for case in CASES:
        monkeypatch.setitem(case.shapes, "tiny", SHAPE)
        for name in set(case.shapes) - {"tiny"}:
            monkeypatch.delitem(case.shapes, name)
    monkeypatch.setattr(module, "_mm_peak", lambda dtype: 1e11)
    out = io.StringIO()
    result = module.bench_ops((1,), repeats=2, sweep=(32, 64), console=Console(file=out, width=79))
    expected = {
        (case.name, backend, dtype, backward)
        for case in CASES
        for backend in case.backends()
        for dtype in module.DTYPES
        for backward in (False, True)
    }
    assert {(r["op"], r["backend"], r["dtype"], r["backward"]) for r in result["rows"]} == expected
    assert len(result["rows"]) == len(expected)
    assert all(min(r["ms"], r["peer_ms"]) > 0 and r["ratio_low"] <= r["ratio_high"] for r in result["rows"])
    assert all((r["peak_share"] is None) == (r["op"] == "gated_scan") for r in result["rows"])
    assert [r["T"] for r in result["sweep"]] == [32, 64]
    assert result["sweep"][0]["to_first"] == 1
    assert "us/token" in out.getvalue() and "…" not in out.getvalue()  # nothing is cut in a terminal of 80 columns


def test_rounds_stop_when_the_time_is_spent(monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 0.0)
    assert [len(times) for times in module._alternate([lambda: None, lambda: None], 50)] == [3, 3]
