"""What verbs have in common: arguments, and what is looked at before anything heavy is imported."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe's name or YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.steps=100")]
Only = Annotated[str | None, typer.Option(metavar="GLOB", help="variants of a grid, e.g. '*-6to1'; default: all")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, e.g. runs/demo")]


def open_run(run: Path) -> None:
    """Raises ConfigError where there is no run."""
    from ..lm.run import Run

    Run(run)


def find_recipe(recipe: str, overrides: list[str] | None) -> None:
    """Raises ConfigError where there is no recipe, or an override is none."""
    from ..lm.recipe.files import load_tree

    load_tree(recipe, overrides or ())


def console():
    """Where verbs print: text as it is, so that a name in square brackets is no style and `:x:` no picture."""
    from rich.console import Console

    with suppress(AttributeError):  # a stream that somebody put in the place of stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return Console(markup=False, emoji=False)
