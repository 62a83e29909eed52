"""What verbs have in common: arguments, and what is looked at before anything heavy is imported."""

import errno
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def _writable(file: Path | None) -> Path | None:
    """The file as given, or one line about why it cannot be written: before the work, not after it."""
    if file is not None:
        folder = file.parent
        if file.is_dir():
            raise typer.BadParameter(f"{str(file)!r} is a folder; give a file")
        if not folder.is_dir():
            raise typer.BadParameter(f"{str(folder)!r} is no folder; make it first")
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise typer.BadParameter(f"{str(file)!r} cannot be written; give another file")
    return file


def finite(value: float) -> float:
    """Of an option: a number that is not nan or infinite."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def numbers(text: str, option: str, most: int) -> list[int]:
    """The whole numbers of a comma-separated option, from 1 to `most`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 0 < int(part[:20]) <= most for part in parts):
        said = f"{text[:80]!r} is no list of whole numbers up to {most}, such as 16,32"
        raise typer.BadParameter(said, param_hint=option)
    return [int(part) for part in parts]


MOST = 10**9  # of whatever is counted
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe's name or YAML file")]
SyntheticOverrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. optim.epochs=1")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.steps=100")]
Only = Annotated[str | None, typer.Option(metavar="GLOB", help="variants of a grid, e.g. '*-6to1'; default: all")]
JsonFile = Annotated[Path | None, typer.Option("--json", callback=_writable, help="also write the numbers here")]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", callback=_writable, help="draw bytes and bounds against the head dim")
]
Threads = Annotated[int, typer.Option(min=1, max=1024)]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, e.g. runs/demo")]


def open_run(run: Path) -> None:
    """Raises ConfigError where there is no run."""
    from ..lm.run import Run

    Run(run)


def find_recipe(recipe: str, overrides: list[str] | None) -> None:
    """Raises ConfigError where there is no recipe, or an override is none."""
    from ..lm.recipe.files import load_tree

    load_tree(recipe, overrides or ())


def one_line(error: OSError) -> str:
    """What the system would not do, and to which file."""
    said = " ".join((error.strerror or str(error)).split())[:400]
    fix = "; free some and repeat" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    name = error.filename2 or error.filename or "disk"  # of a renaming what it was to become, not the file aside
    return f"{name}: {said}{fix}"


def console():
    """Where verbs print."""
    from ..lm.parts.terminal import PlainConsole

    with suppress(AttributeError):  # a stream that somebody put in the place of stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return PlainConsole()
