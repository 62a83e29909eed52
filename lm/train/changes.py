"""What a resumed run does differently from then on: RUN/changes.jsonl, a line for each key."""

import time
from typing import Any

import yaml

from ..data.files import append_records
from ..parts.errors import ConfigError
from ..recipe.recipe import Recipe
from ..run import Run, code_revision, differences
from .origins import read_mapping, read_origins

PLACES = ("train.out", "description", "grid", "init")
"""Keys of a recipe that say where a run lies, what it is called and where it began, not what it does from now on."""

SO_FAR = "what the run has been so far"


def note_changes(run: Run, step: int, origins: dict[str, Any]) -> list[str]:
    """Compare recipe and code with those that the folder holds, and keep what differs; returns a line for each key.

    step: the one from which on the new values hold. origins: the present ones, see origins.py; of the folder's, what
    stands in both is compared.
    """
    found = [*differences(_recipe_before(run), _tree(run.recipe), "unset")]
    found = [change for change in found if not change[0].startswith(PLACES)]
    if (before := run.folder / "code.json").is_file():
        code = differences(read_mapping(before, SO_FAR), code_revision(), "unset")
        found += [(f"code.{name}", old, new) for name, old, new in code]
    found += differences(read_origins(run), origins)
    now = time.time()
    records = [{"step": step, "time": now, "key": key, "before": old, "after": new} for key, old, new in found]
    if records:
        append_records(run.folder / "changes.jsonl", records)
    return [f"changed from step {step} on: {key} was {old}, is {new}" for key, old, new in found]


def _recipe_before(run: Run) -> dict[str, Any]:
    path = run.folder.absolute() / "recipe.yaml"
    if not path.is_file():
        return _tree(run.recipe)
    try:
        return _tree(Recipe.load(path))
    except ConfigError:  # of an older version, with keys that are no more: the file as it stands
        return read_mapping(path, SO_FAR)


def _tree(recipe: Recipe) -> dict[str, Any]:
    return yaml.safe_load(recipe.to_yaml())
