"""Building the native kernels: once, whatever was killed before, and with an error that says what to do."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from hybridlm.kernels import availability
from hybridlm.kernels.native import build
from hybridlm.lm.parts.errors import UserError
from hybridlm.tools import doctor

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason=build.no_compiler())
SLOW_COMPILER = "#!/bin/sh\ntouch {started}\nexec sleep 600\n"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A source of one function, and an empty cache; returns what stands for kernels/."""
    sources = tmp_path / "sources"
    (sources / "folder").mkdir(parents=True)
    (sources / "folder" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    build.cache_key.cache_clear()
    build._which.cache_clear()
    yield sources
    build.cache_key.cache_clear()
    build._which.cache_clear()


def script(tmp_path, monkeypatch, text):
    """CXX is a shell script."""
    path = tmp_path / "compiler"
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


@needs_compiler
def test_builds_once(tiny, capfd):
    path = build.build()
    assert path.parent == build.CACHE and build.is_built()
    assert "compiling the native kernels" in capfd.readouterr().err
    before = path.stat().st_mtime_ns
    assert build.build() == path and path.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""
    assert {x.name for x in build.CACHE.iterdir()} == {"lock", path.name}


@needs_compiler
def test_a_lock_file_left_behind_is_no_lock(tiny):
    build.CACHE.mkdir()
    (build.CACHE / "lock").touch()
    os.utime(build.CACHE / "lock", (0, 0))
    assert build.build().exists()


@needs_compiler
def test_a_killed_build_holds_nobody_up(tiny, tmp_path, monkeypatch):
    started = tmp_path / "started"
    with monkeypatch.context() as patch:
        script(tmp_path, patch, SLOW_COMPILER.format(started=started))
        code = (
            "from pathlib import Path; from hybridlm.kernels.native import build;"
            f"build.SOURCES = Path({str(tiny)!r}); build.CACHE = Path({str(build.CACHE)!r}); build.build()"
        )
        killed = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert started.exists() and list(build.CACHE.glob("build-*"))
    os.kill(killed.pid, signal.SIGKILL)  # its compiler lives on
    killed.wait()
    try:
        assert build.build().exists()
        assert not list(build.CACHE.glob("build-*"))
    finally:
        os.killpg(killed.pid, signal.SIGKILL)


@needs_compiler
def test_waits_for_a_build_that_lives(tiny, capfd):
    import fcntl

    build.CACHE.mkdir()
    with (build.CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=build.build)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not build.is_built()
        build.library_path().touch()  # the other build ends
    waiting.join(30)
    assert not waiting.is_alive()
    assert build.library_path().stat().st_size == 0  # it took what the other one built
    assert "another process is compiling" in capfd.readouterr().err


def test_no_compiler(tiny, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    message = "no C++ compiler was found; install one (Debian, Ubuntu: apt install g++), then: hybridlm doctor --build"
    with pytest.raises(build.NativeBuildError) as error:
        build.build()
    assert str(error.value) == message
    assert availability.native_unavailable(torch.device("cpu")) == message
    assert doctor.check_native() == doctor.Check("native kernels", "note", f"not built: {message}")
    assert not build.CACHE.exists()


def test_a_compiler_that_is_not_there(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NativeBuildError, match="CXX names, no-such-compiler, is not there; install it, or unset"):
        build.build()


@needs_compiler
def test_a_source_that_does_not_compile(tiny):
    (tiny / "another").mkdir()
    (tiny / "another" / "one.cpp").write_text("int two() { return nothing_of_that_name; }\n")
    with pytest.raises(build.NativeBuildError, match="do not compile; they need C") as error:
        build.build()
    assert "nothing_of_that_name" in str(error.value)  # the compiler's own words
    assert {x.name for x in build.CACHE.iterdir()} == {"lock"}
    with pytest.raises(UserError, match="nothing_of_that_name"):
        doctor.build_native(doctor.Console())


def test_a_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "#!/bin/sh\n")
    build.CACHE.parent.joinpath("file").touch()
    monkeypatch.setattr(build, "CACHE", tmp_path / "file" / "cache")
    with pytest.raises(build.NativeBuildError, match="cannot be written: Not a directory"):
        build.build()


def test_key_follows_sources_flags_and_processor(tiny, monkeypatch):
    def key():
        build.cache_key.cache_clear()
        return build.cache_key(tiny)

    keys = [key(), key()]
    (tiny / "folder" / "one.h").write_text("// a header\n")
    keys.append(key())
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    keys.append(key())
    monkeypatch.setattr(build, "_processor", lambda: "another")
    keys.append(key())
    assert keys[0] == keys[1] and len(set(keys)) == 4


def test_unavailable_reasons(tiny, tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "#!/bin/sh\n")
    cpu = torch.device("cpu")
    reason = "its C++ kernels are not built for this machine; run: hybridlm doctor --build"
    assert availability.native_unavailable(cpu) == reason
    assert doctor.check_native().fix == "hybridlm doctor --build"
    assert "these are on cuda" in availability.native_unavailable(torch.device("cuda"))
    build.CACHE.mkdir()
    build.library_path().touch()
    assert availability.native_unavailable(cpu) is None
    assert doctor.check_native().status == "ok"


def test_importing_the_operators_loads_no_library():
    code = (
        "import sys, hybridlm.kernels as k; k.available_backends('gated_scan');"
        "sys.exit('hybridlm.kernels.native.library' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
