"""The weights of step 0 from another run: the recipe's `init`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..parts.errors import CheckpointError, ConfigError, concerning
from ..recipe.recipe import Recipe
from ..recipe.tune import InitConfig
from ..run import Run, checkpoint_steps, differences, open_tensors
from .names import matching


def newest_step(run: Run) -> int | None:
    """The step of a run's newest checkpoint, 0 of an import's; None without one."""
    return max(checkpoint_steps(run.checkpoints), default=None)


def starts_from(recipe: Recipe, run: Run) -> InitConfig | None:
    """The `init` of a run that has no checkpoint yet; None once it goes on from its own.

    Raises ConfigError where the run's folder is an import's, whose weights are its start already.
    """
    step = newest_step(run)
    if recipe.init is None or step:
        return None
    if step == 0:
        raise ConfigError(
            f"init: {str(run.folder)!r} holds imported weights, which training starts from; leave init out, or give "
            "this run a folder of its own with train.out"
        )
    return recipe.init


class Start:
    """Another run's checkpoint, known to have what a model needs. The model may be one without weights.

    own: the tensors that stay as the model was initialised. Raises ConfigError when names or shapes differ, or
    `missing` fits no parameter; CheckpointError when the file cannot be read.
    """

    def __init__(self, config: InitConfig, model: nn.Module, checkpoint: Path):
        self.checkpoint = checkpoint
        wanted = {name: tuple(x.shape) for name, x in _tensors(model).items()}
        with self._file() as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        may_miss = matching(config.missing, wanted, "init.missing")
        self.own = sorted(may_miss - stored.keys())
        needed = {name: shape for name, shape in wanted.items() if name not in self.own}
        found = list(differences(stored, needed, "absent"))
        if found:
            told = [f"{name} is {old} there and {new} here" for name, old, new in found[:3]]
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            fix = "set the recipe's model to that of the run"
            if all(old == "absent" for _, old, _ in found):
                fix += ", or let them begin anew with init.missing"
            raise ConfigError(f"init: {checkpoint}: the weights of another model: {'; '.join(told)}{more}; {fix}")

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Copy the weights, tensor by tensor, into the model's dtype."""
        with self._file() as file:
            for name, tensor in _tensors(model).items():
                if name not in self.own:
                    tensor.copy_(file.get_tensor(name))

    @contextmanager
    def _file(self) -> Iterator[Any]:
        path = self.checkpoint / "model.safetensors"
        try:
            with open_tensors(path) as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"init: {path}: not readable: {error}; restore it, or move its folder away"
            ) from error

    def record(self, run: Run) -> dict[str, Any]:
        """What a run keeps of where it came from."""
        here = {"run": str(run.folder.resolve()), "name": run.recipe.name, "checkpoint": self.checkpoint.name}
        return {**here, "own": self.own}


def source_of(init: InitConfig) -> tuple[Run, Path]:
    """The run that `init` names and its newest checkpoint. Raises ConfigError where there is none."""
    with concerning("init"):
        run = Run(Path(init.run).expanduser())
        return run, run.newest_checkpoint()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: parameters, a tied one once, and persistent buffers."""
    once = dict(model.named_parameters())
    again = dict(model.named_parameters(remove_duplicate=False)).keys() - once.keys()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in again}
