"""Nobody looks at gates on a GPU before a launch: the kernels make NaN of those out of range, never a result."""

import pytest
import torch

from hybridlm.kernels import gated_delta_rule, gated_linear_attention, gated_scan
from hybridlm.kernels.shared import checks

T, WRONG = 40, 15  # the last token of a chunk of 16, which no other token of its chunk reads


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    monkeypatch.setattr(checks, "on_host", lambda x: False)


def inputs(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(1, T, 1, 16, generator=generator) for _ in range(3)] + [
        -torch.rand(*shape, generator=generator)
    ]


def spoilt(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x[:, WRONG] = value
    return x


def assert_spoilt(o: torch.Tensor) -> None:
    assert o[:, WRONG + 1 :].isnan().any(-1).all()


@pytest.mark.parametrize("shape", [(1, T, 1), (1, T, 1, 16)], ids=["head", "channel"])
def test_linear_attention(shape):
    q, k, v, g = inputs(*shape)
    assert gated_linear_attention(q, k, v, g, backend="triton")[0].isfinite().all()
    assert_spoilt(gated_linear_attention(q, k, v, spoilt(g, 0.01), backend="triton")[0])


@pytest.mark.parametrize(("g_value", "beta_value"), [(0.01, 1.0), (-0.1, 2.1), (-0.1, -0.1)])
def test_delta_rule(g_value, beta_value):
    q, k, v, g = inputs(1, T, 1)
    beta = torch.ones(1, T, 1)
    assert gated_delta_rule(q, k, v, g, beta, backend="triton")[0].isfinite().all()
    o, _ = gated_delta_rule(q, k, v, spoilt(g, g_value), spoilt(beta, beta_value), chunk_size=16, backend="triton")
    assert_spoilt(o)


def test_scan():
    x, _, _, g = inputs(1, T, 1, 16)
    assert gated_scan(x, g, backend="triton")[0].isfinite().all()
    assert_spoilt(gated_scan(x, spoilt(g, 0.01), backend="triton")[0])
