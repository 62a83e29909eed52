"""The recipe's `optim` and `train` sections."""

from typing import Literal

from pydantic import Field

from ..parts.errors import ConfigError
from ..parts.ranges import MOST, Beta, LearningRate, PathText
from ..parts.strict import Strict


class ScheduleConfig(Strict):
    """Linear warm-up, then `wsd` (constant, then linear decay over the last `decay`) or `cosine` to `final` * lr."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = Field(
        default=0.05, ge=0, le=MOST, description="fraction of the steps below 1, else a number of steps"
    )
    decay: float = Field(
        default=0.4, ge=0, le=MOST, description="wsd only: fraction of the steps below 1, else a number of steps"
    )
    final: float = Field(default=0.05, ge=0, le=1)


class OptimConfig(Strict):
    """AdamW. Weight decay applies to matrices only; see train/optim.py for the rule."""

    lr: LearningRate = 3e-3
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, ge=1e-20, le=1e6)
    weight_decay: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0, le=1e6, description="global gradient norm; 0 switches clipping off")
    schedule: ScheduleConfig = ScheduleConfig()


class CheckpointConfig(Strict):
    """When training state is written and what is kept. Times are in optimizer steps; 0 means never."""

    every: int = Field(default=200, ge=0, le=MOST)
    keep_last: int = Field(default=2, gt=0, le=MOST)
    keep_every: int = Field(
        default=0, ge=0, le=MOST, description="checkpoints at multiples of this are never rotated away"
    )


LARGEST = 8
"""Sequences per forward and process where a recipe does not say."""


class TrainConfig(Strict):
    """The loop. A step consumes `batch` sequences of `model.context` tokens over all processes."""

    steps: int = Field(gt=0, le=MOST)
    batch: int = Field(default=8, gt=0, le=MOST, description="sequences per optimizer step, over all processes")
    micro_batch: int | None = Field(
        default=None,
        gt=0,
        le=MOST,
        description=f"sequences per forward and process; default: as many as divide a process's share, up to {LARGEST}",
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    activation_checkpointing: bool = False
    compile: bool = False
    threads: int | None = Field(
        default=None, gt=0, le=1024, description="CPU threads per process; default: torch's choice"
    )
    log_every: int = Field(default=10, gt=0, le=MOST)
    valid_every: int = Field(
        default=0, ge=0, le=MOST, description="steps between validation losses; 0: only at the end"
    )
    valid_batches: int | None = Field(
        default=None, gt=0, le=MOST, description="micro-batches per validation set; default: all of it"
    )
    max_skipped: int = Field(
        default=20, gt=0, le=MOST, description="steps skipped in a row, for want of a finite gradient, that end the run"
    )
    checkpoint: CheckpointConfig = CheckpointConfig()
    out: PathText = Field(default="runs/{name}", description="run folder")

    def sequences_per_forward(self, world_size: int = 1) -> int:
        """`micro_batch`, or what follows from the batch and the number of processes.

        Raises ConfigError when the processes cannot share the batch, or micro-batches do not divide a share.
        """
        share, left = divmod(self.batch, world_size)
        if left:
            below, above = self.batch - left, self.batch - left + world_size
            fix = f"{below} or {above}" if below else str(above)
            raise ConfigError(f"train.batch={self.batch}: {world_size} processes cannot share it evenly; use {fix}")
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        if self.micro_batch is None:
            return max(n for n in divisors if n <= LARGEST)
        if self.micro_batch not in divisors:
            raise ConfigError(
                f"train.micro_batch={self.micro_batch}: does not divide the {share} sequences that each of "
                f"{world_size} processes has of train.batch={self.batch}; use {_listed(divisors)}, or leave it out"
            )
        return self.micro_batch


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
