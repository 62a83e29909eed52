"""The benchmark measures what it says: both sides, both passes, executed FLOPs."""

import io

import pytest
from rich.console import Console

from hybridlm.tools import bench_ops as module


@pytest.mark.slow
def test_rows_cover_every_shape_dtype_and_pass(monkeypatch):
    monkeypatch.setattr(module, "SHAPES", {"tiny": (1, 64, 1, 8, 8)})
    monkeypatch.setattr(module, "_mm_peak", lambda dtype: 1e11)
    out = io.StringIO()
    result = module.bench_ops((1,), repeats=2, sweep=(32,), console=Console(file=out, width=200))
    assert {(r["dtype"], r["backward"]) for r in result["rows"]} == {
        (dtype, backward) for dtype in module.DTYPES for backward in (False, True)
    }
    assert [r["shape"] for r in result["sweep"]] == ["T=32, H=4, K=V=64"] * 2
    assert all(r["ours_ms"] > 0 and r["peer_ms"] > 0 and r["peak_share"] > 0 for r in result["rows"])
    assert "tiny" in out.getvalue()
