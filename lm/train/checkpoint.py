"""Checkpoints that any number of processes at any ZeRO stage can continue from: safetensors and a little JSON.

    RUN/checkpoints/step-000200/model.safetensors      weights and buffers under the model's own names, a tied one once
                                optimizer.safetensors  AdamW's moments by parameter name, updates applied, random state
                                state.json             format, step, architecture, and what the loop adds

An imported model is step-000000 without optimizer.safetensors: training starts from its weights.

A checkpoint is written into a hidden folder, flushed to the disk and renamed, so one that has its name is whole.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..data.files import flush
from ..parts.errors import CheckpointError, ConfigError, concerning
from ..recipe.train import CheckpointConfig
from ..run import checkpoint_steps, differences, latest_checkpoint, open_tensors
from .faults import on_main, together

if TYPE_CHECKING:
    from .engine import Engine

FORMAT = 1
PARTIAL, REPLACED = ".partial", ".replaced"


class Checkpoints:
    """The checkpoints of the one run that writes into `folder`. To read a run that may be in training, use `Run`:
    building this removes what killed saves left behind.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, architecture: dict[str, Any]):
        self.folder, self.config = Path(folder), config
        self.architecture = json.loads(json.dumps(architecture))
        on_main(self._clear)

    def _clear(self) -> None:
        """Remove what killed saves left; a checkpoint that was to be replaced and was not is one again."""
        for replaced in self.folder.glob(f".step-*{REPLACED}"):
            target = self.folder / replaced.name.removeprefix(".").removesuffix(REPLACED)
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(target)
        for leftover in self.folder.glob(f".step-*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return latest_checkpoint(self.folder)

    def save(self, engine: "Engine", step: int, extra: dict[str, Any], *, rotate: bool = True) -> Path:
        """Write the training state after `step` steps, then drop the checkpoints that are not kept; collective.

        extra: anything JSON can hold; `load` returns it. rotate: False drops none. Raises CheckpointError on every rank
        when the disk refuses.
        """
        model, optimizer = engine.export_state()
        target = self.folder / f"step-{step:06d}"
        state = {"format": FORMAT, "step": step, "architecture": self.architecture, "extra": extra}
        on_main(lambda: self._keep(target, model, optimizer, state))
        if rotate:
            on_main(self._rotate)
        return target

    def load(self, engine: "Engine", path: Path) -> dict[str, Any]:
        """Put the state at `path` into the engine and torch's generators; returns `extra` and `step`; collective.

        An imported model's weights are taken with a new optimizer and any context. Raises ConfigError when the
        checkpoint is of another format or architecture, CheckpointError when a trained one has lost its optimizer.
        """
        with ExitStack() as stack:
            with together():
                state, model, optimizer = self._open(path, stack, engine)
            engine.import_state(model.get_tensor, optimizer and optimizer.get_tensor)
            if optimizer is not None:
                _set_rng_states(optimizer)
        return {**state["extra"], "step": state["step"]}

    def _open(self, path: Path, stack: ExitStack, engine: "Engine") -> tuple[dict, Any, Any]:
        """state.json, the model's tensors and the optimizer's (None of an imported model), all known to fit."""
        state = _read_state(path)
        imported = not (path / "optimizer.safetensors").is_file()
        if imported and state["step"]:
            raise CheckpointError(
                f"{path}: has no optimizer.safetensors; restore it, or move the folder away to go on from an older one"
            )
        left_out = {"context"} if imported else set()
        _check(path, "model.", differences(_without(state["architecture"], left_out), self.architecture))
        model = stack.enter_context(_open_file(path / "model.safetensors"))
        stored = {name: tuple(model.get_slice(name).get_shape()) for name in model.keys()}  # noqa: SIM118
        _check(path, "tensor ", differences(stored, engine.shapes(), absent="nothing"))
        optimizer = None if imported else stack.enter_context(_open_file(path / "optimizer.safetensors"))
        if optimizer is not None:
            with concerning(str(path)):
                engine.check_optimizer(optimizer.keys(), optimizer.get_tensor("updates"))
        return state, model, optimizer

    def _keep(
        self, target: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
    ) -> None:
        """Write the three files. Raises CheckpointError when the disk refuses."""
        optimizer |= {f"rng.{device}": tensor for device, tensor in _rng_states()}
        size = sum(tensor.nbytes for tensor in (*model.values(), *optimizer.values()))
        try:
            if _free(self.folder) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before the disk is full for everyone
            self._write(target, model, optimizer, json.dumps(state, indent=1))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(self._explain(target, size, error)) from error

    def _write(self, target: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: str) -> None:
        """The three files, whole or not at all."""
        partial = _partial(target)
        try:
            partial.mkdir(parents=True)
            save_file(model, partial / "model.safetensors", metadata={"format": "pt"})
            save_file(optimizer, partial / "optimizer.safetensors", metadata={"format": "pt"})
            (partial / "state.json").write_text(state, encoding="utf-8")
            for file in (*partial.iterdir(), partial):
                flush(file)
            replaced = target.with_name(f".{target.name}{REPLACED}")
            if target.exists():
                target.rename(replaced)
            partial.rename(target)
            flush(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _rotate(self) -> None:
        """Keep the newest `keep_last`, and every multiple of `keep_every`."""
        steps = checkpoint_steps(self.folder)
        every = self.config.keep_every
        for step in sorted(steps)[: -self.config.keep_last]:
            if not (every and step % every == 0):
                self._remove(steps[step])

    def _remove(self, path: Path) -> None:
        """Takes the name away first, so that a removal cut short leaves nothing that looks whole."""
        hidden = path.with_name(f".{path.name}.removed{PARTIAL}")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _explain(self, target: Path, size: int, error: Exception) -> str:
        return (
            f"checkpoint {target.name} not written: {error}. It needs {size / 1e6:.1f} MB, {self.folder} has "
            f"{_free(self.folder) / 1e6:.1f} MB free; older checkpoints are kept. Make room and start again"
        )


def _read_state(path: Path) -> dict[str, Any]:
    """state.json. Raises CheckpointError when it is missing or not whole, ConfigError for another format."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        found = state["format"]
        if found == FORMAT and not {"step", "architecture", "extra"} <= state.keys():
            raise KeyError("step, architecture or extra")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"state.json: {error}") from error
    if found != FORMAT:
        raise ConfigError(f"{path}: checkpoint format {found}, this version reads {FORMAT}; start a new run")
    return state


def _open_file(path: Path) -> Any:
    try:
        return open_tensors(path)
    except (OSError, SafetensorError) as error:
        raise _broken(path.parent, f"{path.name}: {error}") from error


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a whole checkpoint: {why}; move the folder away to go on from an older one")


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}{PARTIAL}")


def _free(folder: Path) -> int:
    """Free bytes on the disk that holds, or will hold, `folder`."""
    return shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.exists())).free


def _without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _check(path: Path, prefix: str, differences: Iterable[tuple[str, Any, Any]]) -> None:
    found = [f"{prefix}{name} is {old} there and {new} here" for name, old, new in differences]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConfigError(
            f"{path}: a checkpoint of another architecture: {'; '.join(found[:3])}{more}. "
            "Set the recipe back, or give the new model its own run folder"
        )


def _rng_states() -> Iterator[tuple[str, Tensor]]:
    """Rank 0's torch generators; they stand for all ranks, so nothing depends on their number."""
    yield "cpu", torch.get_rng_state()
    if torch.cuda.is_available():
        yield "cuda", torch.cuda.get_rng_state()


def _set_rng_states(tensors: Any) -> None:
    torch.set_rng_state(tensors.get_tensor("rng.cpu"))
    if torch.cuda.is_available() and "rng.cuda" in tensors.keys():  # noqa: SIM118
        torch.cuda.set_rng_state(tensors.get_tensor("rng.cuda"))
