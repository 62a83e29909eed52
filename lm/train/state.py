"""What each stage of ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054) does with parameters and AdamW's moments.

One class per way of holding them. This file imports no DeepSpeed: the engine hands over the module.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..recipe.train import OptimConfig
from .optim import GuardedAdamW, LateAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


class StageState(ABC):
    """Parameters and moments of one model, read and written whole however they are held.

    until: after how many steps a parameter begins to train. adam: the optimizer for DeepSpeed to step. clip: the
    gradient norm for DeepSpeed to clip to, 0 where `adam` clips. Create it before `deepspeed.initialize` and `attach`
    what that returns. All but `attach` is collective.
    """

    adam: LateAdamW
    clip: float

    @abstractmethod
    def __init__(self, model: nn.Module, optim: OptimConfig, deepspeed: Any, until: Mapping[nn.Parameter, int]):
        self._group = {p: i for i, group in enumerate(self.adam.param_groups) for p in group["params"]}
        self._counts: list[list[Tensor]] = [[] for _ in self.adam.param_groups]

    @abstractmethod
    def attach(self, engine: Any) -> None:
        """Create zero moments, as AdamW's first step would: a state can be read or written at any step."""

    @abstractmethod
    def parameter(self, p: nn.Parameter) -> Tensor:
        """The whole parameter in float32."""

    @abstractmethod
    def set_parameter(self, p: nn.Parameter, value: Tensor) -> None:
        """Write a whole parameter; value: float32, on the parameter's device."""

    @abstractmethod
    def moment(self, p: nn.Parameter, key: str) -> Tensor:
        """A whole moment, `key` one of MOMENTS."""

    @abstractmethod
    def set_moment(self, p: nn.Parameter, key: str, value: Tensor) -> None:
        """Write a whole moment; value: float32, on the parameter's device."""

    def shape(self, p: nn.Parameter) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return tuple(p.shape)

    def updates(self, p: nn.Parameter) -> Tensor:
        """How many steps were applied to a parameter, a scalar. It is the same for all of a group."""
        return self._counts[self._group[p]][0]

    def set_updates(self, p: nn.Parameter, value: Tensor) -> None:
        """Write the count of a parameter, and so of its group."""
        for count in self._counts[self._group[p]]:
            count.copy_(value)

    def group_of(self, p: nn.Parameter) -> int:
        """Which of `adam`'s groups trains a parameter."""
        return self._group[p]

    def _create_moments(self, owned: Iterable[tuple[int, Tensor]]) -> None:
        """owned: the tensors that `adam` updates on this rank, each with its group."""
        for group, p in owned:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.adam.state[p] = {"step": step, **{key: torch.zeros_like(p, requires_grad=False) for key in MOMENTS}}
            self._counts[group].append(step)


class Replicated(StageState):
    """Stage 0: every rank holds everything, and DeepSpeed steps the optimizer as it is."""

    def __init__(self, model: nn.Module, optim: OptimConfig, deepspeed: Any, until: Mapping[nn.Parameter, int]):
        self.adam, self.clip = GuardedAdamW(model, optim, until), 0.0
        super().__init__(model, optim, deepspeed, until)

    def attach(self, engine: Any) -> None:
        if dist.get_world_size() == 1:
            engine.enable_backward_allreduce = False  # else it copies every gradient twice to reduce nothing
        self._create_moments((i, p) for i, group in enumerate(self.adam.param_groups) for p in group["params"])

    def parameter(self, p: nn.Parameter) -> Tensor:
        return p

    def set_parameter(self, p: nn.Parameter, value: Tensor) -> None:
        p.copy_(value)

    def moment(self, p: nn.Parameter, key: str) -> Tensor:
        return self.adam.state[p][key]

    def set_moment(self, p: nn.Parameter, key: str, value: Tensor) -> None:
        self.adam.state[p][key].copy_(value)


class _Partitioned(StageState):
    """What the stages that cut the optimizer into parts have in common: DeepSpeed knows where the parts are."""

    def __init__(self, model: nn.Module, optim: OptimConfig, deepspeed: Any, until: Mapping[nn.Parameter, int]):
        self.adam, self.clip, self._deepspeed = LateAdamW(model, optim, until), optim.clip, deepspeed
        super().__init__(model, optim, deepspeed, until)

    def parameter(self, p: nn.Parameter) -> Tensor:
        return self._deepspeed.utils.safe_get_full_fp32_param(p) if p.requires_grad else self._frozen(p)

    @abstractmethod
    def _frozen(self, p: nn.Parameter) -> Tensor:
        """A whole parameter that no optimizer has a copy of."""

    def moment(self, p: nn.Parameter, key: str) -> Tensor:
        return self._deepspeed.utils.safe_get_full_optimizer_state(p, key)


class PartitionedOptimizer(_Partitioned):
    """Stages 1 and 2: every rank holds the parameters, and a part of their master copy and of the moments."""

    def attach(self, engine: Any) -> None:
        self._create_moments(enumerate(engine.optimizer.single_partition_of_fp32_groups))
        engine.optimizer._lazy_init_hp_params_optimizer_state()

    def set_parameter(self, p: nn.Parameter, value: Tensor) -> None:
        p.copy_(value)
        self._deepspeed.utils.safe_set_full_fp32_param(p, value)  # the master copy; a frozen parameter has none

    def _frozen(self, p: nn.Parameter) -> Tensor:
        return p

    def set_moment(self, p: nn.Parameter, key: str, value: Tensor) -> None:
        self._deepspeed.utils.safe_set_full_optimizer_state(p, value, key)


class PartitionedParameters(_Partitioned):
    """Stage 3: every rank holds a part of everything; a parameter is gathered where it is used."""

    def attach(self, engine: Any) -> None:
        parts, group_of = engine.optimizer.fp32_partitioned_groups_flat, engine.optimizer.sub_group_to_group_id
        self._create_moments((group_of[i], part) for i, part in enumerate(parts))

    def set_parameter(self, p: nn.Parameter, value: Tensor) -> None:
        with self._deepspeed.zero.GatheredParameters([p], modifier_rank=0):
            if dist.get_rank() == 0:
                p.copy_(value)
        if p.requires_grad:
            self._deepspeed.utils.safe_set_local_fp32_param(p, self._own_part(p, value))

    def _frozen(self, p: nn.Parameter) -> Tensor:
        with self._deepspeed.zero.GatheredParameters([p]):
            return p.detach().clone()

    def set_moment(self, p: nn.Parameter, key: str, value: Tensor) -> None:
        self._deepspeed.utils.safe_set_local_optimizer_state(p, self._own_part(p, value), key)

    def shape(self, p: Any) -> tuple[int, ...]:
        return tuple(p.ds_shape)

    def _own_part(self, p: Any, value: Tensor) -> Tensor:
        """This rank's slice of a parameter that is cut into equal parts, the last one padded with zeros."""
        size, ranks = p.ds_tensor.ds_numel, dist.get_world_size()
        padded = nn.functional.pad(value.flatten(), (0, size * ranks - value.numel()))
        return padded.view(ranks, size)[dist.get_rank()]


STAGES: dict[int, type[StageState]] = {
    0: Replicated,
    1: PartitionedOptimizer,
    2: PartitionedOptimizer,
    3: PartitionedParameters,
}
