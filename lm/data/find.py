"""Files that a path names: one file, a pattern, or a folder. Links are followed, and every file comes once."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..parts.errors import DataError


def find_files(path: Path) -> list[Path]:
    """The file `path`, or the files that match it as a pattern with `*`, `?`, `[...]` and `**`; sorted.

    A part of the path that exists by that very name is no pattern. `*` and `**` leave out hidden names. Raises
    DataError for a link to nothing and a folder that cannot be read: neither is left out in silence.
    """
    return _once(_expand(Path(path.anchor), path.parts[1:] if path.anchor else path.parts))


def files_below(folder: Path, ending: str) -> list[Path]:
    """Every file below `folder` whose name has this ending, hidden or not; sorted. Raises DataError as above."""
    return _once(here / name for here in _folders(folder) for name in _names(here) if name.endswith(ending))


def _expand(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if os.path.lexists(base / first):
        yield from _expand(base / first, rest)
    elif first == "**":
        for here in _folders(base):
            if not any(part.startswith(".") for part in here.relative_to(base).parts):
                yield from _expand(here, rest or ("*",))
    elif base.is_dir():
        for name in fnmatch.filter(_names(base), first):
            if first.startswith(".") or not name.startswith("."):
                yield from _expand(base / name, rest)


def _folders(top: Path) -> Iterator[Path]:
    """`top` and the folders below it, each once, however many links lead to it: the linked ones come last."""
    waiting, seen = [top] if top.is_dir() else [], set()
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for here, names, _ in os.walk(start, onerror=_refuse):
                real = os.path.realpath(here)
                if real in seen:
                    names.clear()
                    continue
                seen.add(real)
                links += [Path(here, name) for name in names if os.path.islink(os.path.join(here, name))]
                yield Path(here)
        waiting = sorted(links)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        _refuse(error)
        raise


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}); make it readable") from None


def _once(found: Iterator[Path]) -> list[Path]:
    """The files among `found`, each once: under its own name rather than that of a link to it."""
    folders: dict[Path, str] = {}
    real: dict[Path, str] = {}
    for path in set(found):
        if path.is_file():
            parent = folders.setdefault(path.parent, os.path.realpath(path.parent))
            real[path] = os.path.realpath(path) if path.is_symlink() else os.path.join(parent, path.name)
        elif path.is_symlink() and not path.exists():
            raise DataError(f"{path}: a link to {os.readlink(path)}, which is not there; mend the link or remove it")
    kept: dict[str, Path] = {}
    for path in sorted(real, key=lambda path: (os.path.abspath(path) != real[path], path)):
        kept.setdefault(real[path], path)
    return sorted(kept.values())
