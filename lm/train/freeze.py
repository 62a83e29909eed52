"""Parameters that do not train until a step, or at all.

One that never trains asks for no gradient, and the optimizer does not know it. One that trains later is in the
optimizer from the start, since ZeRO lays its tensors out once: until then its gradient is formed and dropped, so that
the norm is that of the others, and AdamW passes its group by, with its decay, its moments and its count of updates.
Its first update is then AdamW's first. All of it is the same at every ZeRO stage and for any number of processes.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..parts.errors import ConfigError
from ..recipe.tune import FreezeRule
from .names import matching
from .schedule import whole_steps

FOREVER = sys.maxsize


class Freezing:
    """What of a model is frozen. until: of the parameters that train later, the number of steps made before.

    Making one takes the gradients from those that never train, and hooks those that train later. Raises ConfigError on
    a pattern that fits no parameter, or when nothing is left to train.
    """

    def __init__(self, model: nn.Module, rules: Sequence[FreezeRule], total: int):
        self.done = 0
        self.until: dict[nn.Parameter, int] = {}
        for parameter, step in _last_steps(model, rules, total).items():
            if step == FOREVER:
                parameter.requires_grad_(False)
            elif step > 0:
                self.until[parameter] = step
                parameter.register_hook(lambda grad, step=step: self._passed(grad, step))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("freeze: nothing is left to train; leave some parameters out, or give until")

    def _passed(self, grad: Tensor, until: int) -> Tensor:
        return torch.zeros_like(grad) if self.done < until else grad


def _last_steps(model: nn.Module, rules: Sequence[FreezeRule], total: int) -> dict[nn.Parameter, int]:
    """How many steps a parameter that a rule fits is frozen for; a tied one answers to both of its names."""
    named = dict(model.named_parameters(remove_duplicate=False))
    found: dict[nn.Parameter, int] = {}
    for i, rule in enumerate(rules):
        until = FOREVER if rule.until is None else whole_steps(f"freeze.{i}.until", rule.until, total)
        for name in sorted(matching(rule.match, named, f"freeze.{i}.match")):
            found[named[name]] = max(until, found.get(named[name], 0))
    return found
