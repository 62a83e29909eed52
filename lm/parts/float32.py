"""Parameters that keep their digits whatever dtype the model is cast to."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import nn


class Float32Module(nn.Module):
    """A module some of whose parameters need more digits than the rest of the model."""

    float32_parameters: ClassVar[tuple[str, ...]] = ()
    """Own parameters that stay float32 whatever dtype the model is cast to, and take no weight decay."""

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        kept = {name: self._parameters[name] for name in self.float32_parameters}
        data = {name: p.data for name, p in kept.items() if p is not None}
        super()._apply(fn, recurse)
        for name, old in data.items():
            parameter = self._parameters[name]
            if parameter is not None and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = old.to(parameter.device, torch.float32)  # undo the cast, keep the move
        return self
