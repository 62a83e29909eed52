"""Forget gates with a floor that rises from layer to layer, for HGRN and HGRN-2 (Qin et al. 2023, arXiv 2311.04823)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..parts.errors import ConfigError
from ..parts.float32 import Float32Module
from ..parts.shape import ModelShape


class LowerBounds(Float32Module):
    """lb_l = sum_{1 <= i <= l} softmax_i(Gamma), l = 0 .. n_layers - 1: 0 in layer 0, below 1 everywhere.

    One table Gamma [n_layers, width] for the model, zero at first. A row belongs to a layer of the whole stack, so the
    layers of other mixers have one too, which counts in the softmax and is read by nobody.
    """

    float32_parameters = ("table",)

    def __init__(self, mixer: str, widths: list[int], shape: ModelShape):
        super().__init__()
        if len(set(widths)) > 1:
            found = " and ".join(map(str, sorted(set(widths))))
            raise ConfigError(
                f"{mixer}: layers with gates of {found} channels cannot share the model's table of lower bounds; "
                "give all of them the same sizes"
            )
        self.table = nn.Parameter(torch.zeros(shape.n_layers, widths[0]))

    def forward(self) -> Tensor:
        """log lb_l and log(1 - lb_l), [n_layers, 2, width].

        Both are logarithms of sums of exp(Gamma) over the same total, so neither cancels, however near to 0 or 1, and
        the gate's gradient by them is at most 1.
        """
        first, others = self.table[:1], self.table[1:]
        # row l of `rest` sums over layer 0 and those above l, of `floor` over layers 1 .. l
        rest = torch.cat((first, others.flip(0))).logcumsumexp(0).flip(0)
        floor = torch.cat((torch.full_like(first, -torch.inf), others.logcumsumexp(0)))
        return torch.stack((floor, rest), 1) - rest[0]


def forget_gate(logits: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """log f and 1 - f for f = lb + (1 - lb) sigmoid(logits), float32 at least.

    logits: [..., width]. bounds: log lb and log(1 - lb), [2, width]; None is lb = 0.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_f, log_input = F.logsigmoid(logits), F.logsigmoid(-logits)
    if bounds is not None:
        log_floor, log_rest = bounds
        log_f = torch.logaddexp(log_floor, log_rest + log_f).clamp(max=0)  # rounding may put it a digit above 0
        log_input = log_rest + log_input
    return log_f, log_input.exp()
