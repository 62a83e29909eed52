"""Inverse of unit lower triangular matrices against torch.linalg in float64."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels.shared.triangular import unit_lower_inverse, unit_lower_inverse_flops
from hybridlm.tests.oracles import assert_close

SIZES = [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["random", "ones"])
def test_inverse(n, kind):
    torch.manual_seed(n)
    a = torch.rand(3, n, n) / n**0.5 if kind == "random" else torch.ones(3, n, n)  # ones: equal unit keys, beta 1
    a = a.tril(-1)
    expected = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + a.double())
    assert_close(unit_lower_inverse(a), expected, 1e-6)
    assert_close(unit_lower_inverse(a.double()), expected, 1e-13)


@pytest.mark.parametrize("n", SIZES)
def test_declared_flops_are_the_counted_ones(n):
    with FlopCounterMode(display=False) as counter:
        unit_lower_inverse(torch.zeros(3, n, n))
    assert counter.get_total_flops() == 3 * unit_lower_inverse_flops(n)
