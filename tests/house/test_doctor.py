"""`hybridlm doctor` on invented machines: each known fault is found, and a healthy machine raises none."""

import io
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from hybridlm.tools import doctor as module
from hybridlm.tools.doctor import Check, Gpu

NOW = 1_000_000.0
HOPPER = Gpu("H100", 9, 0, 80 * module.GIB)
AMPERE = Gpu("A100", 8, 0, 80 * module.GIB)
TURING = Gpu("T4", 7, 5, 16 * module.GIB)


def make_lock(root: Path, operator: str, age: float) -> Path:
    lock = root / "py311_cpu" / operator / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (NOW - age, NOW - age))
    return lock


def only(checks: list[Check]) -> Check:
    assert len(checks) == 1
    return checks[0]


def test_stale_lock_is_a_problem_and_is_not_deleted(tmp_path: Path):
    lock = make_lock(tmp_path / "with space", "fused_adam", age=3600)
    check = only(module.check_locks(tmp_path, NOW, building=set()))
    assert (check.status, check.fix) == ("problem", f"rm '{lock}'")
    assert str(lock) in check.text and "60 minutes" in check.text
    assert lock.exists()


def test_lock_of_a_running_build_is_only_a_note(tmp_path: Path):
    lock = make_lock(tmp_path, "fused_adam", age=3600)
    assert only(module.check_locks(tmp_path, NOW, building={lock.parent})).status == "note"
    assert only(module.check_locks(tmp_path, NOW, building={lock.parent.parent / "other"})).status == "problem"


def test_compiler_of_unknown_folder_might_be_the_build(tmp_path: Path):
    make_lock(tmp_path, "fused_adam", age=3600)
    assert only(module.check_locks(tmp_path, NOW, building={None})).status == "note"


def test_young_lock_is_a_note_and_no_lock_is_ok(tmp_path: Path):
    assert only(module.check_locks(tmp_path, NOW, building=set())).status == "ok"
    assert only(module.check_locks(tmp_path / "absent", NOW, building=set())).status == "ok"
    make_lock(tmp_path, "fused_adam", age=module.STALE_LOCK_SECONDS - 1)
    assert only(module.check_locks(tmp_path, NOW, building=set())).status == "note"


def test_each_lock_is_listed(tmp_path: Path):
    make_lock(tmp_path, "a", age=9000)
    make_lock(tmp_path, "b", age=1)
    assert [check.status for check in module.check_locks(tmp_path, NOW, building=set())] == ["problem", "note"]


def test_building_folders_sees_a_living_compiler(tmp_path: Path):
    """A copy of `sleep` called ninja stands for a build."""
    ninja = tmp_path / "ninja"
    ninja.symlink_to("/bin/sleep")
    with subprocess.Popen([str(ninja), "30"], cwd=tmp_path) as build:
        try:
            name = psutil.Process(build.pid).name()
            assert (tmp_path in module.building_folders()) == (name == "ninja")
            assert name == "ninja"
        finally:
            build.kill()


@pytest.mark.parametrize("variable", ["TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME", "HOME"])
def test_extensions_root_follows_torch(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    below = {"TORCH_EXTENSIONS_DIR": "", "XDG_CACHE_HOME": "torch_extensions", "HOME": ".cache/torch_extensions"}
    assert module.extensions_root() == tmp_path / below[variable]


@pytest.mark.parametrize(
    ("triton", "status"),
    [
        ("3.3.1", "ok"),
        ("3.4.0", "problem"),
        ("3.6.0", "problem"),
        ("3.7.0", "problem"),
        ("3.7.1", "ok"),
        ("3.8.0", "ok"),
        ("3.10.0", "ok"),
    ],
)
def test_hopper_triton_pair(triton: str, status: str):
    assert only(module.check_hopper_triton([AMPERE, HOPPER], triton)).status == status


def test_hopper_triton_pair_needs_both():
    assert module.check_hopper_triton([AMPERE], "3.6.0") == []
    assert module.check_hopper_triton([HOPPER], None) == []


def test_versions_missing_too_old_and_good():
    versions = {"torch": "2.13.0+cpu", "deepspeed": "0.16.0", "triton": "3.7.1", "lm-eval": "0.4.13"}
    checks = {check.name: check for check in module.check_versions(versions.get)}
    assert (checks["torch"].status, checks["torch"].text) == ("ok", "2.13.0+cpu")
    assert checks["deepspeed"].status == "problem" and ">=0.19.8" in checks["deepspeed"].text
    assert checks["triton"].status == checks["lm-eval"].status == "ok"
    missing = checks["flash-linear-attention"]
    assert missing.status == "note" and missing.fix == 'pip install "flash-linear-attention>=0.6.0"'
    assert module.OPTIONAL["flash-linear-attention"] in missing.text


def test_a_missing_required_package_is_a_problem():
    checks = {check.name: check for check in module.check_versions(lambda name: None)}
    assert {name for name, check in checks.items() if check.status == "problem"} == {"torch", "deepspeed"}


def test_doctor_answers_without_torch(monkeypatch: pytest.MonkeyPatch):
    installed = module.installed_version
    monkeypatch.setattr(module, "installed_version", lambda name: None if name == "torch" else installed(name))
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises
    checks = {check.name: check for check in module.doctor()}
    assert checks["torch"].status == "problem"
    assert "memory" in checks and "CPU" not in checks


def test_gpu_lines():
    assert module.check_gpus([HOPPER]).text == "H100 (sm_90, 80 GiB)"
    assert module.check_gpus([HOPPER]).status == "ok"
    assert module.check_gpus([HOPPER, TURING]).status == "note"


def test_ninja_of_an_environment_that_is_not_activated(tmp_path: Path):
    ninja = tmp_path / "ninja"
    assert module.check_ninja("/usr/bin/ninja", ninja).status == "ok"
    assert module.check_ninja(None, ninja).fix == "pip install ninja"
    ninja.touch()
    assert module.check_ninja(None, ninja).fix == f'export PATH="{tmp_path}:$PATH"'


def test_compiler_is_the_one_torch_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", sys.executable)
    assert module.check_compiler() == Check("C++ compiler", "ok", sys.executable)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert module.check_compiler().status == "note"


def test_memory_low_and_enough():
    assert module.check_memory(16 * module.GIB, 8 * module.GIB) == Check("memory", "ok", "16.0 GiB, 8.0 GiB free")
    assert module.check_memory(16 * module.GIB, module.GIB).status == "note"


def test_caches_are_measured(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 1000)
    assert module._folder_bytes(tmp_path) == 1000
    assert module.check_caches([tmp_path / "absent"]).text == "empty"


def test_writable_and_unwritable_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check = module.check_writable(tmp_path / "runs")
    assert check.status != "problem" and str(tmp_path) in check.text
    assert not (tmp_path / "runs").exists()

    def refuse(dir: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refuse)  # root may write anywhere, so a mode is no test
    check = module.check_writable(tmp_path / "runs")
    assert check.status == "problem" and "Permission denied" in check.text


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_exit_code_and_report(status: module.Status, code: int, monkeypatch: pytest.MonkeyPatch):
    check = Check("lock [red]", status, "text with [brackets]", "rm /a/very/long/path/" + "x" * 100 + "/lock")
    monkeypatch.setattr(module, "doctor", lambda: [Check("fine", "ok", "yes"), check])
    console = Console(width=60, record=True, file=io.StringIO())
    assert module.run_doctor(console) == code
    report = console.export_text()
    assert "lock [red]" in report and "[brackets]" in report
    assert check.fix in report, "a command must stay in one piece"


def test_this_machine_is_reported_whole():
    checks = {check.name: check for check in module.doctor()}
    assert {"Python", "torch", "deepspeed", "CPU", "threads", "memory", "GPU", "build lock", "caches"} <= checks.keys()
    first_line = checks["gated_delta_rule"].text.splitlines()[0]
    assert {"reference", "chunked"} <= set(first_line.split(", "))
