"""Training to be like a frozen teacher.

    loss = (1 - w) CE + w T^2 KL(teacher || student) + h H

CE is the labels' cross entropy, KL that of the next token's distributions at temperature T, each a mean over the
targets; both are formed from one slice of the student's logits at a time, see lm/model/loss.py. H compares hidden
states, over the same tokens:

    H = mean of |s / rms(s) - t / rms(t)|^2 / d_model = mean of 2 - 2 cos(s, t)

since the states of a residual stream differ in size by layer, and a few channels from the others by orders of
magnitude. `last` compares what the output heads read, `all` what leaves each layer too. Auxiliary losses of the student
are added as always.

The teacher is in no optimizer, no checkpoint and no ZeRO stage: each process has all of it, in float32 and in
evaluation mode, and computes in the precision of the student: one that is its teacher is at distance 0 to rounding.
"""

from typing import Any

import torch
from torch import Tensor

from ..data.tokenizer import Tokenizer
from ..model import HybridLM, Output
from ..model.loss import IGNORE, SoftTargets, shift_labels
from ..parts.context import Context
from ..parts.errors import ConfigError
from ..recipe.model import BaseModelConfig
from ..recipe.recipe import Recipe
from ..recipe.tune import DistillConfig
from ..run import Run
from .engine import Engine
from .vocabulary import check_same_vocabulary


def check_teacher(run: Run, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Raises ConfigError unless a run can teach what the recipe trains: before the weights of either are there."""
    check_same_vocabulary(run, tokenizer, "distill.teacher")
    _check_sizes(run.recipe.model, recipe)


def _check_sizes(teacher: BaseModelConfig, recipe: Recipe) -> None:
    student, hidden = recipe.model, bool(recipe.distill and recipe.distill.hidden)
    every_layer = hidden and recipe.distill is not None and recipe.distill.layers == "all"
    needed = {"vocab_size": True, "d_model": hidden, "n_layers": every_layer}
    for name, why in needed.items():
        there, here = getattr(teacher, name), getattr(student, name)
        if why and there != here:
            leave = "" if name == "vocab_size" else "; distill.hidden=0 compares no states"
            raise ConfigError(f"distill.teacher: its {name} is {there}, that of the student {here}{leave}")
    if teacher.positions == "learned" and teacher.context < student.context:
        raise ConfigError(
            f"distill.teacher: it has {teacher.context} positions, and model.context={student.context} are trained on"
        )


class Teacher:
    """A model with weights, which it puts on the engine's device and takes the gradients from."""

    def __init__(self, model: HybridLM, config: DistillConfig, engine: Engine, bf16: bool):
        self.config, self.engine, self.bf16 = config, engine, bf16
        self.model = model.to(engine.device).eval().requires_grad_(False)

    def forward(self, ids: Tensor, sequences: Any) -> Output:
        """The student's output on a micro-batch: the loss above, and its unweighted means in `terms`."""
        config = self.config
        compares_all = bool(config.hidden) and config.layers == "all"
        theirs = self._shown(ids, sequences, compares_all)
        soft = SoftTargets(
            theirs.hidden,
            self.model.lm_head.weight,
            self.model.config.logit_softcap,
            config.temperature,
            config.weight,
        )
        output = self.engine.forward(
            input_ids=ids, labels=ids, sequences=sequences, logits=False, layers=compares_all, soft=soft
        )
        if not config.hidden or output.loss is None:
            return output
        kept = shift_labels(ids, Context.of_sequences(sequences, None, ids.device)) != IGNORE
        distance = _distance(_states(output), _states(theirs), kept)
        terms = {**output.terms, "hidden": distance.detach()}
        return output._replace(loss=output.loss + config.hidden * distance, terms=terms)

    @torch.no_grad()
    def _shown(self, ids: Tensor, sequences: Any, layers: bool) -> Output:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(ids, sequences=sequences, logits=False, layers=layers)


def _states(output: Output) -> tuple[Tensor, ...]:
    """What leaves the layers, where it is there, and what the output head reads. What enters the first is no state."""
    return *output.layers[1:], output.hidden


def _distance(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...], kept: Tensor) -> Tensor:
    """H above: the mean over the kept tokens [B, T] and the pairs of states."""
    n = kept.sum().clamp(min=1)
    sums = [((_unit(s) - _unit(t)).square().mean(-1) * kept).sum() for s, t in zip(mine, theirs, strict=True)]
    return torch.stack(sums).mean() / n


def _unit(x: Tensor) -> Tensor:
    """x / rms(x), in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12)
