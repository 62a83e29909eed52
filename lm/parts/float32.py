"""Parameters that keep their digits whatever dtype the model is cast to."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import nn

LOW = (torch.bfloat16, torch.float16)


class Float32Module(nn.Module):
    """A module some of whose parameters need more digits than the rest of the model."""

    float32_parameters: ClassVar[tuple[str, ...]] = ()
    """Own parameters that stay float32 whatever dtype the model is cast to, and take no weight decay."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Widened if it was made under a lower default dtype, or read from a file of one."""
        if name in self.float32_parameters and param is not None and param.dtype in LOW:
            param = nn.Parameter(param.detach().float(), param.requires_grad)
        super().register_parameter(name, param)

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        kept = {name: self._parameters[name] for name in self.float32_parameters}
        old = {name: (p.data, None if p.grad is None else p.grad.data) for name, p in kept.items() if p is not None}
        super()._apply(fn, recurse)
        for name, (data, grad) in old.items():
            parameter = self._parameters[name]
            if parameter is not None and parameter.dtype in LOW:  # undo the cast, keep the move
                parameter.grad = None
                parameter.data = data.to(parameter.device, torch.float32)
                parameter.grad = None if grad is None else grad.to(parameter.device, torch.float32)
        return self

    def check_precision(self) -> None:
        """Raises ValueError where somebody has rounded such a parameter, past the casts that this class sees."""
        for name in self.float32_parameters:
            parameter = self._parameters.get(name)
            if parameter is not None and parameter.dtype in LOW:
                raise ValueError(
                    f"{type(self).__name__}.{name} is {parameter.dtype}; allowed: float32, else it loses its digits; "
                    "shard a float32 model and use torch.autocast, not a policy that casts parameters"
                )
