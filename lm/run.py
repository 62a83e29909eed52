"""A run is a folder: recipe, code revision, metrics, checkpoints, evaluation results, plots. This reads one.

A checkpoint is RUN/checkpoints/step-000200; what lies in it is told where it is written, in train/checkpoint.py.
"""

import json
import re
import subprocess
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.files import read_records, write_atomically
from .parts.errors import ConfigError
from .recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from .data.tokenizer import Tokenizer

IMPORTED = "imported from "
"""How the description of an import's recipe begins."""


class Run:
    """The files of one run by name. `Run.create` starts one, `Run(path)` opens it for evaluation or generation."""

    def __init__(self, path: str | Path):
        self.folder = Path(path)
        if not (self.folder / "recipe.yaml").is_file():
            raise ConfigError(f"run {str(path)!r}: no recipe.yaml there; give a run folder such as runs/demo")

    @classmethod
    def create(cls, recipe: Recipe) -> "Run":
        """The folder of `recipe`, with the merged recipe and the code's revision written into it."""
        folder = recipe.run_folder()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "recipe.yaml", recipe.to_yaml().encode())  # every process of a launch does this
        write_atomically(folder / "code.json", json.dumps(code_revision(), indent=1).encode())
        return cls(folder)

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe.load(self.folder / "recipe.yaml")

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def metrics(self) -> list[dict[str, Any]]:
        """The logged records in order of step; of a step that was logged again after a resume, the last one."""
        newest = {(record["kind"], record["step"]): record for record in read_records(self.metrics_file)}
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
                f"run {str(self.folder)!r}: no checkpoint yet; train it first: hybridlm train {self.folder}"
            )
        return newest

    def weights(self) -> "dict[str, Tensor]":
        """The newest checkpoint's tensors on the CPU, under the model's own names, a tied one once."""
        from safetensors.torch import load_file  # not at the top: a run is opened without torch

        return load_file(self.newest_checkpoint() / "model.safetensors")


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """The finished checkpoints in `folder` by step."""
    named = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in Path(folder).glob("step-*"))
    return {int(match[1]): path for match, path in named if match}


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None."""
    steps = checkpoint_steps(folder)
    return steps[max(steps)] if steps else None


def open_tensors(path: Path) -> Any:
    """One of a checkpoint's files of tensors, to read them one by one; a context manager."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def code_revision() -> dict[str, str]:
    """Version of the package and of the libraries a result depends on, and the git commit where there is one."""
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("hybridlm", "torch", "deepspeed", "numpy")}
    git = ["git", "-C", str(Path(__file__).parents[1]), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return {**libraries, "git": described.stdout.strip() or "not a git checkout"}
