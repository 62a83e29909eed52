"""Members of downloaded archives, read into memory. Nothing is unpacked to a path that an archive chose."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ...parts.errors import DataError


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Regular files of a wheel, .tar.gz, .tgz or .deb whose name is `wanted`, sorted by name, without leading "./".

    Raises DataError when the file is no readable archive or holds nothing that is wanted.
    """
    try:
        found = _read(path, wanted)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable archive ({reason}); delete it and fetch again") from None
    if not found:
        raise DataError(f"{path}: the archive holds none of the expected files; delete it and fetch again")
    return dict(sorted(found.items()))


def read_member(path: Path, name: str) -> bytes:
    """The one member called exactly `name`."""
    return read_members(path, name.__eq__)[name]


def _read(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if wanted(name)}
    if path.suffix == ".deb":
        return _tar_members(io.BytesIO(_deb_data(path)), wanted)
    with path.open("rb") as file:
        return _tar_members(file, wanted)


def _tar_members(file: io.BufferedIOBase, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            content = tar.extractfile(member) if member.isfile() and wanted(name) else None
            if content is not None:
                found[name] = content.read()
    return found


def _deb_data(path: Path) -> bytes:
    """The data.tar.* of a Debian package. A .deb is an `ar` file: a magic line, then 60-byte headers and contents."""
    raw = path.read_bytes()
    if not raw.startswith(b"!<arch>\n"):
        raise tarfile.ReadError("no ar magic")
    at = 8
    while at + 60 <= len(raw):
        name = raw[at : at + 16].rstrip(b" /")
        size = int(raw[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return raw[at + 60 : at + 60 + size]
        at += 60 + size + size % 2  # members start at even offsets
    raise tarfile.ReadError("no data.tar member")
