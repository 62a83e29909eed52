"""constraints/*.txt are exact, complete for pyproject.toml, and keep clear of the known-bad triton."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, Version]:
    """Package -> pinned version; fails on a line that is anything but `name==version`, or that comes twice."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    pinned = {}
    for line in (line for line in lines if line and not line.startswith("#")):
        package, _, version = line.partition("==")
        assert package == canonicalize_name(package), f"{name}: write {line!r} with its normal name"
        assert package not in pinned, f"{name}: {package} is pinned twice"
        pinned[package] = Version(version)
    return pinned


def direct(*extras: str) -> list[Requirement]:
    """The requirements that pyproject.toml names, for the base and `extras`, those on hybridlm itself left out."""
    lines = [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "hybridlm"]


@pytest.mark.parametrize(
    ("file", "extras"), [("cpu.txt", ("eval", "hf", "demo", "dev")), ("cuda.txt", ("eval", "hf", "demo", "dev", "gpu"))]
)
def test_every_direct_dependency_is_pinned_within_its_bound(file: str, extras: tuple[str, ...]):
    pinned = pins(file)
    requirements = {canonicalize_name(requirement.name): requirement for requirement in direct(*extras)}
    assert requirements.keys() - pinned.keys() == set()
    assert [str(r) for name, r in requirements.items() if pinned[name] not in r.specifier] == []


def test_no_pin_has_a_local_tag():
    """`torch==2.13.0+cpu` exists on one index only; without the tag every index has it."""
    assert [f"{n}=={v}" for file in ("cpu.txt", "cuda.txt") for n, v in pins(file).items() if v.local] == []


def test_cuda_differs_from_cpu_only_in_torch_triton_and_cuda():
    cpu, cuda = pins("cpu.txt"), pins("cuda.txt")
    assert {name for name in cpu if cuda.get(name) != cpu[name]} == {"torch", "triton"}
    assert all(name.startswith(("nvidia-", "cuda-")) for name in cuda.keys() - cpu.keys())


@pytest.mark.parametrize("file", ["cpu.txt", "cuda.txt"])
def test_pinned_triton_is_outside_the_range_that_miscompiles_on_hopper(file: str):
    assert pins(file)["triton"] >= Version("3.7.1")
