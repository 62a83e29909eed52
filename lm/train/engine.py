"""One training engine over DeepSpeed, and the only file that imports it.

Precision: parameters, gradient sums and moments are float32 at every setting; `bf16` is torch autocast around the
forward, so decay parameters are float32 wherever a mixer reads them.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model import HybridLM, Output
from ..parts.errors import ConfigError
from ..recipe.train import OptimConfig, TrainConfig
from .distributed import start_process_group
from .freeze import Freezing
from .parallel import apply
from .schedule import learning_rate
from .state import MOMENTS, STAGES

MAX_BUCKET = 200_000_000  # elements reduced at once; DeepSpeed allocates the bucket whole
SET_BACK = "set the recipe's freeze back, or go on in a run of its own, by init"


class StepResult(NamedTuple):
    """grad_norm: global norm before clipping, inf when not finite. applied: False when that made the step skipped."""

    grad_norm: float
    applied: bool


class Engine:
    """Forward, backward and step of one model on this process's share of the batch.

    After `backward` of every micro-batch of a step, on every rank, the gradient is that of the plain sum of the passed
    losses over micro-batches and ranks: divide each by what the whole batch needs, such as its number of targets.
    freezing: of `model`, what of it is frozen; `begin` says when a step begins.
    """

    def __init__(
        self,
        model: HybridLM,
        optim: OptimConfig,
        train: TrainConfig,
        total_steps: int,
        freezing: Freezing | None = None,
    ):
        learning_rate(0, total_steps, optim)  # an impossible schedule fails here, not after the start-up
        start_process_group()
        deepspeed = _load_deepspeed()
        apply(model, train, partial(deepspeed.utils.set_z3_leaf_modules, raise_if_not_found=False))
        self.model = model
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0
        self._freezing = freezing or Freezing(model, (), total_steps)
        self._state = STAGES[train.zero_stage](model, optim, deepspeed, self._freezing.until)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._state.adam,
            config=_settings(model, train, self._state.clip),
            dist_init_required=False,
        )
        self._state.attach(self._engine)
        self.device: torch.device = torch.device(self._engine.device)

    def begin(self, done: int) -> None:
        """Before a step's first forward: `done` steps have been made, which decides what trains."""
        self._freezing.done = self._state.adam.done = done

    def forward(self, **batch: Any) -> Output:
        """The model's output, under autocast when the precision is bf16."""
        return self._engine(**batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the step's."""
        self._engine.backward(loss * self.world_size)  # DeepSpeed takes the mean over ranks

    def step(self, lr: float) -> StepResult:
        """Clip by the global norm and update with rate `lr`, unless a gradient is not finite; then clear gradients."""
        for group in self._state.adam.param_groups:
            group["lr"] = lr
        self._engine.step()
        applied = self._engine.was_step_applied()
        return StepResult(float(self._engine.get_global_grad_norm()) if applied else math.inf, applied)

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        """`tensor` reduced over ranks by sum, max or min, as a new tensor; collective."""
        reduced = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(reduced, getattr(dist.ReduceOp, op.upper()))
        return reduced.to(tensor.device)

    def close(self) -> None:
        """Release the model and DeepSpeed's hooks; the process group stays until the process ends."""
        self._engine.destroy()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model tensors that `export_state` returns."""
        shapes = {name: self._state.shape(p) for name, p in self.model.named_parameters()}
        return shapes | {name: tuple(buffer.shape) for name, buffer in self._buffers()}

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Training state free of ZeRO stage and world size, on the CPU; collective, empty except on rank 0.

        Returns the model's tensors under its own names (a tied weight once) and the optimizer's: `exp_avg.NAME`,
        `exp_avg_sq.NAME`, and `updates`, the number of steps applied; where parameters began to train at different
        steps, one of each in the order of their names in the model, 0 for those that do not train.
        """
        model: dict[str, Tensor] = {}
        optimizer: dict[str, Tensor] = {}
        for name, p in self.model.named_parameters():
            self._keep(model, name, self._state.parameter(p))
            for key in MOMENTS if p.requires_grad else ():
                self._keep(optimizer, f"{key}.{name}", self._state.moment(p, key))
        for name, buffer in self._buffers():
            self._keep(model, name, buffer)
        counts = [self._state.updates(p) if p.requires_grad else None for p in self.model.parameters()]
        trained = {float(count) for count in counts if count is not None}
        each = torch.tensor([0.0 if count is None else float(count) for count in counts])
        self._keep(optimizer, "updates", each if len(trained) > 1 else torch.tensor(trained.pop()))
        return model, optimizer

    def check_optimizer(self, names: Collection[str], updates: Tensor) -> None:
        """Raise ConfigError when an optimizer's tensors, by name, with its `updates`, are not for what trains here."""
        counts: dict[int, tuple[str, float]] = {}
        for i, (name, p) in enumerate(self.model.named_parameters()):
            if not p.requires_grad:
                continue
            if f"{MOMENTS[0]}.{name}" not in names:
                raise ConfigError(f"{name} did not train before and would now; {SET_BACK}")
            count = float(updates[i] if updates.ndim else updates)
            first, other = counts.setdefault(self._state.group_of(p), (name, count))
            if count != other:
                raise ConfigError(
                    f"{first} has had {other:.0f} updates and {name} {count:.0f}, but neither is frozen longer than "
                    f"the other; {SET_BACK}"
                )

    @torch.no_grad()
    def import_state(self, model: Callable[[str], Tensor], optimizer: Callable[[str], Tensor] | None = None) -> None:
        """Take over what `export_state` returned at any stage and world size, read tensor by tensor; collective.

        The model's tensors may be of any float dtype. Without an optimizer's, the moments stay as they are.
        """
        updates = optimizer("updates") if optimizer else torch.tensor(0.0)
        for i, (name, p) in enumerate(self.model.named_parameters()):
            self._state.set_parameter(p, model(name).to(self.device, torch.float32))
            if optimizer and p.requires_grad:
                for key in MOMENTS:
                    self._state.set_moment(p, key, optimizer(f"{key}.{name}").to(self.device))
                self._state.set_updates(p, updates[i] if updates.ndim else updates)
        for name, buffer in self._buffers():
            buffer.copy_(model(name))

    def _keep(self, tensors: dict[str, Tensor], name: str, value: Tensor) -> None:
        if self.is_main:
            tensors[name] = value.detach().to("cpu", copy=True)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Persistent buffers: what state_dict holds besides parameters."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return ((name, t) for name, t in self.model.state_dict().items() if name not in parameters)


def _settings(model: nn.Module, train: TrainConfig, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration: the defaults except where a comment says why."""
    n_parameters = sum(p.numel() for p in model.parameters())
    bucket = min(MAX_BUCKET, n_parameters + n_parameters % 2)  # DeepSpeed wants an even number
    return {
        "train_micro_batch_size_per_gpu": 1,  # demanded, used for nothing here
        "managed_gradient_accumulation": False,  # backward only adds, step() is the boundary: as in PyTorch
        "gradient_clipping": clip,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it synchronises the device at every step
        # no "safe" modules: theirs would have their gradients reduced in bf16
        "torch_autocast": {
            "enabled": train.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "zero_allow_untested_optimizer": True,  # ours is AdamW that passes groups by
        "zero_optimization": {
            "stage": train.zero_stage,
            # both buy overlap with memory copies, which a CPU does not hide
            "overlap_comm": train.zero_stage >= 2 and torch.cuda.is_available(),
            "contiguous_gradients": train.zero_stage >= 2 and torch.cuda.is_available(),
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }


def _load_deepspeed() -> ModuleType:
    """DeepSpeed, quiet and without the C++ helper that it would compile for about 90 s at its first start on a CPU.

    The helper, `deepspeed_shm_comm`, serves tensor-parallel inference alone, and no setting declines it
    (https://github.com/deepspeedai/DeepSpeed/issues/7625). The table below is where DeepSpeed looks up whether it can
    be built, and is read for nothing else; filling it here also saves a probe of the machine's compilers.
    """
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found no accelerator
    import deepspeed
    import deepspeed.ops

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # ZeRO-3 calls collectives under the names torch has just renamed, a warning for every parameter and step
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}  # type: ignore[attr-defined]
    return deepspeed
