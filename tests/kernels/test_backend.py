"""Choice of a backend: never a silent fallback."""

import subprocess
import sys

import pytest
import torch

from hybridlm.kernels import BackendUnavailable, available_backends, gated_delta_rule, gated_scan_step, operators
from hybridlm.kernels.backend import Backend, Policy, choose, declared

CPU = torch.device("cpu")


def call(**options):
    x = torch.randn(1, 3, 1, 4)
    return gated_delta_rule(x, x, x, None, torch.ones(1, 3, 1), **options)


def test_listing():
    assert "gated_delta_rule" in operators()
    reasons = available_backends("gated_delta_rule", CPU)
    assert list(reasons) == ["reference", "chunked", "native", "triton", "fla"]
    assert reasons["reference"] is None and reasons["chunked"] is None
    assert reasons["fla"] == (
        'its kernels need tensors on a CUDA device, these are on cpu; move them or use backend="auto"'
    )


def test_unwritten_backend_raises():
    x = torch.zeros(1, 3)
    with pytest.raises(BackendUnavailable) as error:
        gated_scan_step(x, x, state=x, backend="chunked")
    assert str(error.value) == (
        'gated_scan_step: backend "chunked" is unavailable: gated_scan_step has no chunked implementation; '
        'use backend="auto"'
    )


def backends(**policies):
    """The reference and others, each a function that returns its name."""
    return {name: Backend(lambda x, name=name: name, p) for name, p in {"reference": Policy(), **policies}.items()}


def chosen(backends, name="auto", device=CPU):
    return choose("op", backends, name, device)(None)


def test_auto_takes_the_last_for_the_device_and_raises_if_it_cannot_run():
    triton = Policy(lambda device: "no triton; install it", auto_on=("cuda",))
    known = backends(chunked=Policy(), triton=triton)
    assert chosen(known) == "chunked"
    with pytest.raises(BackendUnavailable, match='op: backend "triton" is unavailable: no triton; install it'):
        chosen(known, device=torch.device("cuda"))
    assert chosen(known, "reference") == "reference"


def test_auto_does_without_an_optional_backend_and_takes_it_once_it_is_there():
    missing = ["not built"]
    native = Policy(lambda device: missing[0] if missing else None, auto_on=("cpu",), optional=True)
    known = backends(chunked=Policy(), native=native)
    assert chosen(known) == "chunked"
    with pytest.raises(BackendUnavailable, match="not built"):
        chosen(known, "native")
    missing.clear()
    assert chosen(known) == "native"


def test_backends_are_ordered_by_speed_however_they_are_declared():
    known = declared("hybridlm.kernels", {"triton": print, "chunked": print, "reference": print, "native": print})
    assert list(known) == ["reference", "chunked", "native", "triton"]


def test_a_backend_given_by_name_is_imported_at_the_first_call():
    code = (
        "import sys, hybridlm.kernels as k; name = 'hybridlm.kernels.gated_scan.native'; before = name in sys.modules;"
        "run = k.gated_scan.backends['native'].function; sys.exit(before or run is not sys.modules[name].run)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_names():
    with pytest.raises(ValueError, match="backend name is 'fast'; allowed: reference, chunked, native, triton, fla"):
        declared("hybridlm.kernels", {"fast": print})
    with pytest.raises(ValueError, match="backend is 'fast'; allowed: auto, reference"):
        chosen(backends(), "fast")
