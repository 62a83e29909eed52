"""AdamW and its parameter groups."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..mixers import Mixer
from ..recipe.train import OptimConfig

NONE: Mapping[nn.Parameter, int] = MappingProxyType({})


def parameter_groups(
    model: nn.Module, weight_decay: float, until: Mapping[nn.Parameter, int] = NONE
) -> list[dict[str, Any]]:
    """Trainable parameters in named groups, each in the model's own order: `matrices` decay, `rest` does not.

    A matrix is the weight of an nn.Linear. What also serves as an embedding (a tied head) or stands in its mixer's
    `float32_parameters` is none; norms, biases, convolution kernels and free parameters never are. No empty groups.
    until: after how many steps a parameter begins to train; those that begin together are groups of their own.
    """
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            matrices.discard(module.weight)
        if isinstance(module, Mixer):
            matrices -= {getattr(module, name) for name in module.float32_parameters}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = []
    for step in sorted({until.get(p, 0) for p in trainable}):
        mine = [p for p in trainable if until.get(p, 0) == step]
        then = f" from step {step}" if step else ""
        groups += [
            _group(f"matrices{then}", [p for p in mine if p in matrices], weight_decay, step),
            _group(f"rest{then}", [p for p in mine if p not in matrices], 0.0, step),
        ]
    return [group for group in groups if group["params"]]


def _group(name: str, parameters: list[nn.Parameter], weight_decay: float, until: int) -> dict[str, Any]:
    return {"name": name, "params": parameters, "weight_decay": weight_decay, "until": until}


class LateAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over `parameter_groups`, of which some begin late.

    A group whose `until` is above `done`, the steps that training has made, is as if it were not there: no decay, no
    moments, no count. PyTorch's fused kernel: on a CPU it takes a fifth of the time of the default one, and it is
    bit-deterministic, also over the number of threads and over flattened parameters.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, until: Mapping[nn.Parameter, int] = NONE):
        groups = parameter_groups(model, optim.weight_decay, until)
        super().__init__(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        self.done = 0

    def begun(self) -> list[dict[str, Any]]:
        """The groups that train now."""
        return [group for group in self.param_groups if self.done >= group["until"]]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the groups that train now."""
        groups = self.param_groups
        self.param_groups = self.begun()
        try:
            super().step()
        finally:
            self.param_groups = groups


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW for training without an engine."""
    return LateAdamW(model, optim)


class GuardedAdamW(LateAdamW):
    """AdamW that clips by the global norm and leaves weights and moments alone when a gradient is not finite.

    For ZeRO stage 0, where DeepSpeed steps the optimizer as it is. `overflow` and `_global_grad_norm` are the names
    under which DeepSpeed reads the outcome of its own optimizers at stages 1 to 3.
    """

    overflow: bool = False
    _global_grad_norm: Tensor | float = 0.0

    def __init__(self, model: nn.Module, optim: OptimConfig, until: Mapping[nn.Parameter, int] = NONE):
        super().__init__(model, optim, until)
        self.clip = optim.clip

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip, then update unless the norm is not finite."""
        parameters = [p for group in self.begun() for p in group["params"]]
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)  # as at stages 1 to 3: an unused parameter decays too
        self._global_grad_norm = nn.utils.clip_grad_norm_(parameters, self.clip or math.inf)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step()
