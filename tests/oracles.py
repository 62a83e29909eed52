"""Independent implementations that the tests compare against, and the measure they compare by."""

import importlib.util
import math
from functools import cache
from pathlib import Path
from types import ModuleType

from torch import Tensor

NOTHING = 1e-20  # norm of an error that is exactly zero for practical purposes: every input here is of order 1


def relative_rms(found: Tensor, expected: Tensor) -> float:
    """RMS(found - expected) / RMS(expected), in float64; inf if found is not finite."""
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape, f"{list(found.shape)} != {list(expected.shape)}"
    if not found.isfinite().all():
        return math.inf
    error = (found - expected).norm().item()
    if error <= NOTHING:
        return 0.0
    return error / scale if (scale := expected.norm().item()) else math.inf


def assert_close(found: Tensor, expected: Tensor, bound: float, name: str = "tensor") -> None:
    error = relative_rms(found, expected)
    assert error <= bound, f"{name}: relative RMS error {error:.2e} > {bound:.0e}"


@cache
def fla_naive(operator: str) -> ModuleType:
    """flash-linear-attention's naive.py of an operator, loaded by path: importing the package needs Triton."""
    package = importlib.util.find_spec("fla")
    assert package and package.submodule_search_locations, "pip install flash-linear-attention (the dev extra has it)"
    path = Path(package.submodule_search_locations[0]) / "ops" / operator / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{operator}", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
