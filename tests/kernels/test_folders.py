"""A complete folder: the recurrence, its parallel form, C++, Triton and a step, each in its place and registered."""

import copy
import inspect
import pickle
from collections.abc import Iterable
from pathlib import Path

import pytest

from hybridlm import kernels
from hybridlm.kernels.backend import Backend
from hybridlm.kernels.operator import OPERATORS, Function, Operator, Step

ROOT = Path(kernels.__file__).parent
FOLDERS = [x for x in sorted(ROOT.iterdir()) if x.is_dir() and x.name not in ("shared", "native", "__pycache__")]
FILES = ("arguments.py", "reference.py", "chunked.py", "native.py", "native.cpp", "triton_*.py", "step.py")
BACKENDS = ("reference", "chunked", "native", "triton")
STEP_BACKENDS = ("reference", "native", "triton")


def missing(folder: Path, registered: Iterable[Function]) -> list[str]:
    """What a complete folder has and this one has not."""
    package = f"{kernels.__name__}.{folder.name}"
    lacking = [name for name in FILES if not any(folder.glob(name))]
    found = [op for op in registered if isinstance(op, Operator) and op.__module__ == package]
    if not found:
        return [*lacking, "an operator in __init__.py"]
    for op in found:
        lacking += [f"{name} of {op.name}" for name in BACKENDS if name not in op.backends]
        lacking += [f"{name} of {op.step.name}" for name in STEP_BACKENDS if name not in op.step.backends]
    return lacking


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_is_complete(folder):
    assert missing(folder, OPERATORS.values()) == []


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_a_file_is_told_its_name(name, tmp_path):
    folder = tmp_path / "gated_scan"
    folder.mkdir()
    for other in set(FILES) - {name}:
        (folder / other.replace("*", "rule")).touch()
    assert missing(folder, OPERATORS.values()) == [name]


def test_a_folder_that_registers_too_little_is_told_what(tmp_path, monkeypatch):
    monkeypatch.delitem(kernels.gated_scan.backends, "chunked")
    monkeypatch.delitem(kernels.gated_scan.step.backends, "triton")
    folder = ROOT / "gated_scan"
    assert missing(folder, OPERATORS.values()) == ["chunked of gated_scan", "triton of gated_scan_step"]
    assert missing(folder, []) == ["an operator in __init__.py"]


def operators_of(kind: type) -> list[Function]:
    return [op for op in OPERATORS.values() if isinstance(op, kind)]


@pytest.mark.parametrize(
    ("op", "name", "backend"),
    [(op, name, backend) for op in operators_of(Function) for name, backend in op.backends.items()],
    ids=lambda x: getattr(x, "name", x) if not isinstance(x, Backend) else "",
)
def test_a_backend_is_a_function_of_the_folders_arguments_in_its_own_file(op, name, backend):
    if name == "triton":
        pytest.importorskip("triton")
    function = backend.function
    package = op.__module__.removesuffix(".step")
    expected = {"triton": f"{package}.triton_"}.get(name, f"{package}.{name}")
    assert function.__module__.startswith(expected)
    (parameter,) = inspect.signature(function).parameters.values()
    assert parameter.annotation.__module__ == f"{package}.arguments"
    assert parameter.annotation.__name__.endswith("StepArguments") == isinstance(op, Step)


@pytest.mark.parametrize("op", operators_of(Operator), ids=lambda op: op.name)
def test_an_operator_is_its_public_function_with_its_step_and_flops(op):
    assert getattr(kernels, op.name) is op and op.__name__ == op.name
    assert getattr(kernels, f"{op.name}_step") is op.step
    assert getattr(kernels, f"{op.name}_flops") is op.flops
    assert "backend" in inspect.signature(op).parameters and "backend" in inspect.signature(op.step).parameters
    assert "Returns" in op.__doc__ and f"One token of `{op.name}`" in op.step.__doc__


@pytest.mark.parametrize("op", operators_of(Function), ids=lambda op: op.name)
def test_an_operator_is_copied_and_pickled_by_name_as_a_function_is(op):
    assert copy.deepcopy(op) is op and pickle.loads(pickle.dumps(op)) is op
