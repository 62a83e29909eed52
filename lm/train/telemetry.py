"""What a run says while it trains: metrics.jsonl, TensorBoard, one console line per window, a progress bar."""

import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...kernels.shared.devices import device_named
from ..data.files import append_records
from ..model import HybridLM
from ..recipe.recipe import Recipe
from ..run import Run
from .faults import on_main

if TYPE_CHECKING:
    from .engine import Engine

Logged = float | list[float]
"""A number, or one for each head of a layer."""


class Telemetry:
    """Records of one run. Only the first process writes; the others count along."""

    def __init__(self, run: Run, recipe: Recipe, model: HybridLM, engine: "Engine", console: Console):
        self.run, self.recipe, self.console, self.main = run, recipe, console, engine.is_main
        self.world_size = engine.world_size
        self.flops_per_token = 3 * model.flops_per_token(recipe.model.context)
        self.peak = device_peak(engine.device)
        self.pending: list[dict[str, Any]] = []
        self.window: deque[tuple[int, float, float]] = deque(maxlen=recipe.train.log_every)
        self.first = 1  # the step from which on this process logs
        self.board: Any = None
        self.progress: Progress | None = None

    def __enter__(self) -> "Telemetry":
        on_main(self._open)
        return self

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only where a run starts

        if self.run.metrics_file.is_file():  # what an earlier process logged from there on has not come to be
            self.pending.append({"kind": "resumed", "step": self.first - 1, "time": time.time()})
        self.board = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=self.first)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.task = self.progress.add_task("train", total=self.recipe.train.steps)
            self.progress.start()

    def __exit__(self, *_: object) -> None:
        self.flush()
        if self.progress:
            self.progress.stop()
        if self.board:
            self.board.close()

    def train_step(self, step: int, record: dict[str, Logged], tokens: int, seconds: float, waited: float) -> None:
        """Log one optimizer step of so many tokens; every `log_every` steps a line is printed, and lists are kept."""
        self.window.append((tokens, seconds, waited))
        shown = step % self.recipe.train.log_every == 0 or step in (1, self.recipe.train.steps)
        kept = {name: value for name, value in record.items() if shown or not isinstance(value, list)}
        self._keep("train", step, {**kept, "seconds": seconds})
        if self.progress:
            self.progress.update(self.task, completed=step)
        if shown:
            on_main(lambda: self._report(step, record))

    def _report(self, step: int, record: dict[str, Any]) -> None:
        self._say(self.line(step, record))
        self.flush()

    def line(self, step: int, record: dict[str, Any]) -> str:
        """The console line of a step: rates are means over the window."""
        tokens, seconds, waited = (sum(column) for column in zip(*self.window, strict=True))
        rate = tokens / seconds
        total = self.recipe.train.steps
        parts = [
            f"step {step}/{total}",
            f"loss {record['loss']:.4f}",
            f"norm {record['norm']:.2f}",
            f"lr {record['lr']:.1e}",
        ]
        parts += [f"{name} {record[name]:.4f}" for name in ("kl", "hidden") if name in record]
        parts.append(
            f"tok/s {_short(rate)}" + (f" ({_short(rate / self.world_size)}/gpu)" if self.world_size > 1 else "")
        )
        if self.peak:
            parts.append(f"mfu {100 * rate * self.flops_per_token / (self.peak * self.world_size):.1f}%")
        left = (total - step) * seconds / len(self.window)
        parts += [f"mem {memory_gib():.1f}G", f"data {100 * waited / seconds:.1f}%", f"skip {record['skipped']:.0f}"]
        return " | ".join([*parts, f"eta {_clock(left)}"])

    def valid(self, step: int, name: str, score: dict[str, float]) -> None:
        """Log the score of one validation set."""
        self._keep("valid", step, _under(name, score), key=name)
        self._say(f"step {step} | valid {name} | loss {score['loss']:.4f} | bits/byte {score['bits_per_byte']:.4f}")

    def measured(self, step: int, name: str, values: dict[str, float]) -> None:
        """Log what a hook measured."""
        self._keep("eval", step, _under(name, values), key=name)
        self._say(f"step {step} | {name} | " + " | ".join(f"{key} {value:.4f}" for key, value in values.items()))

    def resumed(self, step: int) -> None:
        """Say where the run goes on."""
        self.first = step + 1
        self._say(f"resumed {self.run.folder} at step {step}")

    def flush(self) -> None:
        """Write the pending records."""
        if self.main and self.pending:
            append_records(self.run.metrics_file, self.pending)
            self.pending = []

    def _keep(self, kind: str, step: int, values: Mapping[str, Logged], key: str = "") -> None:
        if not self.main:
            return
        self.pending.append({"kind": f"{kind}/{key}" if key else kind, "step": step, "time": time.time(), **values})
        for name, value in values.items():
            if isinstance(value, list):  # a curve for each head would be hundreds of them
                numbers = np.array(value)
                if np.isfinite(numbers).all():  # a histogram has no place for others
                    self.board.add_histogram(f"{kind}/{name}", numbers, step)
            else:
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def _say(self, text: str) -> None:
        if self.main:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def log_measured(run: Run, step: int, name: str, values: dict[str, float]) -> None:
    """Log what was measured on a checkpoint after training, as `Telemetry.measured` does while it goes on."""
    from torch.utils.tensorboard import SummaryWriter

    record = {"kind": f"eval/{name}", "step": step, "time": time.time()}
    append_records(run.metrics_file, [{**record, **_under(name, values)}])
    with SummaryWriter(str(run.folder / "tensorboard")) as board:
        for key, value in _under(name, values).items():
            board.add_scalar(f"eval/{key}", value, step)


def _under(name: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in values.items()}


def device_peak(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of one device; None where that is not known: rather no MFU than a wrong one."""
    known = device_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return known and known.bf16


def memory_gib() -> float:
    """Most memory used so far: the GPU allocator's on a GPU, the process's on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _short(value: float) -> str:
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:.1f}K" if value >= 1e3 else f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{hours}h{minutes % 60:02d}m" if hours else f"{minutes}m{int(seconds % 60):02d}s"
