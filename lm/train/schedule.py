"""Learning rate as a pure function of the optimizer step: the loop's own step counter is the only clock."""

import math

from ..parts.errors import ConfigError
from ..recipe.train import OptimConfig


def learning_rate(step: int, total: int, optim: OptimConfig) -> float:
    """The learning rate of update number `step`, 0 <= step < total.

    With W warm-up and D decay steps, lr the peak and f = `final`:

        step < W:               lr (step + 1) / W
        wsd, last D steps:      lr (1 - (1 - f) (step + 1 - (total - D)) / D)
        cosine, after warm-up:  lr (f + (1 - f) (1 + cos(pi (step + 1 - W) / (total - W))) / 2)
        otherwise:              lr

    so the last warm-up step has lr and the last step of a decay has f lr. `warmup` and `decay` below 1 are fractions of
    `total`. wsd: Hu et al. 2024, arXiv 2404.06395, section 4; its decay is linear here (Haegele et al. 2024, arXiv
    2405.18392). Raises ConfigError when warm-up and decay do not fit into `total`.
    """
    if not 0 <= step < total:
        raise ValueError(f"step: {step} is outside the run's {total} steps")
    kind, final = optim.schedule.kind, optim.schedule.final
    warmup, decay = _phases(total, optim)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if kind == "cosine":
        progress = (step + 1 - warmup) / (total - warmup)
        return optim.lr * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
    into_decay = step + 1 - (total - decay)
    if into_decay > 0:
        return optim.lr * (1 - (1 - final) * into_decay / decay)
    return optim.lr


def _phases(total: int, optim: OptimConfig) -> tuple[int, int]:
    """Steps of warm-up and of decay."""
    schedule = optim.schedule
    warmup = whole_steps("optim.schedule.warmup", schedule.warmup, total)
    decay = whole_steps("optim.schedule.decay", schedule.decay, total) if schedule.kind == "wsd" else 0
    if warmup + decay > total:
        raise ConfigError(
            f"optim.schedule: warmup of {warmup} and decay of {decay} steps do not fit into train.steps={total}; "
            "shorten one of them, or give fractions below 1"
        )
    return warmup, decay


def whole_steps(field: str, value: float, total: int) -> int:
    """A fraction of `total` below 1, else a number of steps. Raises ConfigError for one that is not whole."""
    if value < 1:
        return round(value * total)
    if value != int(value):
        raise ConfigError(f"{field}: {value} is neither a fraction below 1 nor a whole number of steps")
    return int(value)
