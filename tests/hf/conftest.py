"""transformers without flash-linear-attention."""

import sys

import pytest

HYBRIDS = ("olmo_hybrid", "qwen3_5")


@pytest.fixture
def no_fla(monkeypatch):
    """transformers' hybrids on their PyTorch path: an installed fla would replace it by Triton kernels."""
    for name in list(sys.modules):
        package, module = name.split(".")[0], name.split(".")[-1]
        if package == "fla" or (package == "transformers" and module.endswith(HYBRIDS)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fla", None)
