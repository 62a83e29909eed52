"""A run is a folder: recipe, code revision, metrics, checkpoints, evaluation results, plots. This reads one.

A checkpoint is RUN/checkpoints/step-000200; what lies in it is told where it is written, in train/checkpoint.py.
"""

import json
import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.files import read_records, write_atomically
from .parts.errors import CheckpointError, ConfigError, DataError
from .recipe.files import as_override
from .recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from .data.tokenizer import Tokenizer

IMPORTED = "imported from "
"""How the description of an import's recipe begins."""


class Run:
    """The files of one run by name. `Run(path)` opens one; `Run.of(recipe)` is one that may not have begun."""

    def __init__(self, path: str | Path):
        self.folder = Path(path)
        if not (self.folder / "recipe.yaml").is_file():
            raise ConfigError(f"run {str(path)!r}: no recipe.yaml there; {_instead(self.folder)}")

    @classmethod
    def of(cls, recipe: Recipe, folder: Path | None = None) -> "Run":
        """The run of `recipe`, in its own folder unless told otherwise; nothing is read or written."""
        run = cls.__new__(cls)
        run.folder = recipe.run_folder() if folder is None else folder
        run.recipe = recipe
        return run

    def keep(self) -> None:
        """Write the merged recipe and the code's revision into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "recipe.yaml", self.recipe.to_yaml().encode())
        write_atomically(self.folder / "code.json", json.dumps(code_revision(), indent=1).encode())

    @cached_property
    def recipe(self) -> Recipe:
        return recipe_of(self.folder)

    @property
    def name(self) -> str:
        """What the folder is called; of `.` too."""
        return self.folder.name or self.folder.resolve().name

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def metrics(self) -> list[dict[str, Any]]:
        """The logged records in order of step; of steps that a resume went back before, what was logged after it.

        A number that is not finite is null in the file and NaN here.
        """
        newest: dict[tuple[str, int], dict[str, Any]] = {}
        for record in read_records(self.metrics_file):
            if not {"kind", "step"} <= record.keys():
                raise DataError(f"{self.metrics_file}: a line has no kind or no step; move it away")
            if record["kind"] == "resumed":
                newest = {key: old for key, old in newest.items() if old["step"] <= record["step"]}
            else:
                known = {name: math.nan if value is None else value for name, value in record.items()}
                newest[record["kind"], record["step"]] = known
        return sorted(newest.values(), key=lambda record: record["step"])

    def tokenizer(self) -> "Tokenizer":
        from .data.tokenizer import Tokenizer

        as_trained = self.recipe.data.tokenizer.special_text
        found = Tokenizer.load(self.folder / "tokenizer", imported=self._is_import, special_text=as_trained)
        return found.for_rows(self.recipe.model.vocab_size)

    @property
    def _is_import(self) -> bool:
        """Whether the run was made of a published checkpoint: its recipe has the tokenizer of its own folder."""
        recipe, own = self.recipe, (self.folder / "tokenizer").resolve()
        path = recipe.data.tokenizer.path
        return recipe.description.startswith(IMPORTED) or (path is not None and Path(path).resolve() == own)

    def newest_checkpoint(self) -> Path:
        """The folder of the latest complete checkpoint."""
        newest = latest_checkpoint(self.checkpoints)
        if newest is None:
            raise ConfigError(
                f"run {str(self.folder)!r}: no checkpoint yet; train it first: "
                + shlex.join(["hybridlm", "train", str(self.folder)])
            )
        return newest

    def weights(self) -> "dict[str, Tensor]":
        """The newest checkpoint's tensors on the CPU, under the model's own names, a tied one once."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file  # not at the top: a run is opened without torch

        path = self.newest_checkpoint() / "model.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: not readable: {error}; restore it, or move its folder away") from error


def _instead(folder: Path) -> str:
    """What to give for a folder that is no run."""
    if (folder / "config.json").is_file():
        return "a checkpoint from elsewhere becomes a run with hybridlm convert checkpoint"
    return "give a run folder such as runs/demo"


def recipe_of(folder: Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a run folder. That of an import has the tokenizer of its own folder, wherever that was moved."""
    file = folder.absolute() / "recipe.yaml"  # a leading ~ is part of its name
    found = Recipe.load(file, overrides)
    if found.description.startswith(IMPORTED) and found.data.tokenizer.kind == "file" and has_tokenizer(folder):
        own = as_override("data.tokenizer.path", str(folder.resolve() / "tokenizer"))
        return Recipe.load(file, [own, *overrides])
    return found


def has_tokenizer(folder: Path) -> bool:
    """Whether a run's folder holds a tokenizer. Its file is written last: a run that is just beginning has none yet."""
    return any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """The finished checkpoints in `folder` by step."""
    named = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in Path(folder).glob("step-*") if path.is_dir())
    return {int(match[1]): path for match, path in named if match}


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None."""
    steps = checkpoint_steps(folder)
    return steps[max(steps)] if steps else None


def differences(stored: dict[str, Any], wanted: dict[str, Any], absent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Dotted names whose values differ, with both. Without `absent`, names that only one side has do not count: what
    is stored may be older than the options that were added since.
    """
    for name in {**wanted, **stored}:
        if absent is None and not (name in stored and name in wanted):
            continue
        old, new = stored.get(name, absent), wanted.get(name, absent)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from ((f"{name}.{key}", a, b) for key, a, b in differences(old, new, absent))
        elif old != new:
            yield name, old, new


def open_tensors(path: Path) -> Any:
    """One of a checkpoint's files of tensors, to read them one by one; a context manager."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def code_revision() -> dict[str, str]:
    """Version of the package and of the libraries a result depends on, and the git commit where there is one."""
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("hybridlm", "torch", "deepspeed", "numpy")}
    return {**libraries, "git": _commit(Path(__file__).resolve()) or "not a git checkout"}


def _commit(file: Path) -> str:
    """The commit of the repository that tracks `file`; empty if it only lies in one, as an installed package may."""
    git = ["git", "-C", str(file.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # there may be no git
        return ""
    described = [*git, "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip()
