"""The product of few rows: the module's own, and what stands in the module's place is asked."""

import pytest
import torch
from torch import nn

from hybridlm.lm.parts.linear import FEW, project
from hybridlm.tests.oracles import assert_close


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, FEW.start, 8, FEW.stop - 1, FEW.stop])
def test_few_rows_are_projected_as_by_the_module(rows, bias):
    module, x = nn.Linear(96, 1000, bias=bias), torch.randn(rows, 1, 96)
    assert_close(project(module, x), module(x), 1e-6)


@torch.no_grad()
def test_hooks_and_wrappers_are_called():
    module, x, calls = nn.Linear(8, 8), torch.randn(8, 8), []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    project(module, x)

    class Adapted(nn.Linear):
        def forward(self, x):
            calls.append("adapter")
            return super().forward(x)

    project(Adapted(8, 8), x)
    assert calls == ["hook", "adapter"]


def test_gradients_are_the_module_s():
    module, x = nn.Linear(8, 8), torch.randn(8, 8)
    project(module, x).sum().backward()
    assert module.weight.grad is not None
