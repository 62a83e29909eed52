"""A run is a folder: recipe, code revision, metrics, checkpoints, evaluation results, plots. This reads one."""

import json
import subprocess
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from .data.files import write_atomically
from .parts.errors import ConfigError
from .recipe.recipe import Recipe

if TYPE_CHECKING:
    from .data.tokenizer import Tokenizer
    from .model import HybridLM


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
        if not self.metrics_file.is_file():
            return []
        records = [json.loads(line) for line in self.metrics_file.read_text().splitlines() if line.endswith("}")]
        newest = {(record["kind"], record["step"]): record for record in records}
        return sorted(newest.values(), key=lambda record: record["step"])

    def tokenizer(self) -> "Tokenizer":
        from .data.tokenizer import Tokenizer

        return Tokenizer.load(self.folder / "tokenizer")

    def newest_checkpoint(self) -> Path:
        """The folder of the latest complete checkpoint."""
        from .train.checkpoint import latest_checkpoint

        newest = latest_checkpoint(self.checkpoints)
        if newest is None:
            raise ConfigError(
                f"run {str(self.folder)!r}: no checkpoint yet; train it first: hybridlm train {self.folder}"
            )
        return newest

    def load_model(self, device: str | torch.device | None = None) -> "HybridLM":
        """The model with the weights of the newest checkpoint, in evaluation mode; on the GPU if there is one."""
        from .model import HybridLM

        model = HybridLM(self.recipe.model)
        weights = load_file(self.newest_checkpoint() / "model.safetensors")
        if self.recipe.model.tie_embeddings:
            weights["lm_head.weight"] = weights["embed.weight"]  # stored once
        model.load_state_dict(weights)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def code_revision() -> dict[str, str]:
    """Version of the package and of the libraries a result depends on, and the git commit where there is one."""
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("hybridlm", "torch", "deepspeed", "numpy")}
    git = ["git", "-C", str(Path(__file__).parents[1]), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return {**libraries, "git": described.stdout.strip() or "not a git checkout"}
