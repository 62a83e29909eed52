"""The recipe's `optim` and `train` sections."""

from typing import Literal

from pydantic import Field

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
    eps: float = Field(default=1e-8, ge=1e-20, le=1)
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


class TrainConfig(Strict):
    """The loop. A step consumes `batch` sequences of `model.context` tokens over all processes."""

    steps: int = Field(gt=0, le=MOST)
    batch: int = Field(default=8, gt=0, le=MOST, description="sequences per optimizer step, over all processes")
    micro_batch: int = Field(default=8, gt=0, le=MOST, description="sequences per forward and process")
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
    checkpoint: CheckpointConfig = CheckpointConfig()
    out: PathText = Field(default="runs/{name}", description="run folder")
