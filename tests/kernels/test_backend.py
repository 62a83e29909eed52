"""Choice of a backend: never a silent fallback."""

import pytest
import torch

from hybridlm.kernels import (
    BackendUnavailable,
    available_backends,
    backend,
    gated_delta_rule,
    gated_scan_step,
    operators,
    short_conv,
)

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


def test_auto_takes_the_last_registered_for_the_device_and_raises_if_it_cannot_run(monkeypatch):
    monkeypatch.setattr(backend, "_registry", {})
    backend.register("op", "reference", lambda: "reference")
    backend.register("op", "chunked", lambda: "chunked", auto_on=None)
    backend.register("op", "triton", lambda: "triton", unavailable=lambda d: "no triton; install it", auto_on=("cuda",))
    assert backend.choose("op", "auto", CPU)() == "chunked"
    with pytest.raises(BackendUnavailable, match='op: backend "triton" is unavailable: no triton; install it'):
        backend.choose("op", "auto", torch.device("cuda"))
    assert backend.choose("op", "reference", CPU)() == "reference"


def test_auto_does_without_an_optional_backend_and_takes_it_once_it_is_there(monkeypatch):
    monkeypatch.setattr(backend, "_registry", {})
    missing = ["not built"]
    backend.register("op", "chunked", lambda: "chunked", auto_on=None)
    backend.register(
        "op",
        "native",
        lambda: "native",
        unavailable=lambda d: missing[0] if missing else None,
        auto_on=("cpu",),
        optional=True,
    )
    assert backend.choose("op", "auto", CPU)() == "chunked"
    with pytest.raises(BackendUnavailable, match="not built"):
        backend.choose("op", "native", CPU)
    missing.clear()
    assert backend.choose("op", "auto", CPU)() == "native"


def test_a_backend_given_by_name_is_imported_at_the_first_call(monkeypatch):
    monkeypatch.setattr(backend, "_registry", {})
    backend.register("op", "chunked", "short_conv:short_conv", auto_on=None)
    assert backend.choose("op", "auto", CPU) is short_conv


def test_unknown_names(monkeypatch):
    monkeypatch.setattr(backend, "_registry", {})
    with pytest.raises(ValueError, match="backend name is 'fast'; allowed: reference, chunked, native, triton, fla"):
        backend.register("op", "fast", print)
    backend.register("op", "chunked", print, auto_on=None)
    with pytest.raises(ValueError, match="backend is 'fast'; allowed: auto, reference"):
        backend.choose("op", "fast", CPU)
