"""Long inputs through a model in chunks of bounded memory: what it was made for, prefill, greedy continuation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...lm.model.cache import Cache
from ...lm.model.limits import length_limit
from ...lm.parts.errors import ConfigError, NaNError
from .nan_trace import first_nan
from .scoring import target_log_p

if TYPE_CHECKING:
    from ...lm.model import HybridLM
    from ...lm.recipe.model import BaseModelConfig

CHUNK = 512
"""Tokens of a row per forward: activations and attention masks exist for as many, whatever the input's length."""


def check_length(config: "BaseModelConfig", length: int, beyond: str, field: str = "length") -> bool:
    """Whether `length`, given as `field`, is over the model's limit.

    Raises ConfigError if so and `beyond` is error, or it cannot run.
    """
    limit = length_limit(config)
    if limit is None or length <= limit:
        return False
    if config.positions == "learned":
        raise ConfigError(f"{field}: {length} tokens, but model.positions=learned ends at {limit}; use at most {limit}")
    if beyond == "error":
        raise ConfigError(
            f"{field}: {length} tokens, but the model's rotary attention was trained to {limit}; use at most {limit}, "
            "or beyond=run to measure it all the same"
        )
    return True


def run_chunks(model: "HybridLM", ids: Tensor, cache: Cache, chunk: int = CHUNK) -> Iterator[tuple[int, Tensor]]:
    """(start, hidden [B, <= chunk, D]) of ids [B, T], continuing from `cache`, which is updated."""
    for start in range(0, ids.shape[1], chunk):
        output = model(ids[:, start : start + chunk], cache=cache, logits=False)
        yield start, output.hidden


def prefill(model: "HybridLM", ids: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Cache]:
    """What the head reads after the last of ids [B, T]: [B, D]; and the state there. No logits on the way."""
    cache = model.new_cache(len(ids))
    last = torch.empty(0)
    for _, hidden in run_chunks(model, ids, cache, chunk):
        last = hidden[:, -1]
    return last, cache


def greedy(
    model: "HybridLM",
    hidden: Tensor,
    cache: Cache,
    max_new_tokens: int,
    done: Callable[[Tensor], bool],
    vocab_size: int | None = None,
) -> Tensor:
    """The likeliest token after `hidden` [B, D], again and again: [B, n]. Ends when `done` of the tokens so far.

    vocab_size: ids from there on are padding of the embedding and never taken.
    """
    columns: list[Tensor] = []
    while len(columns) < max_new_tokens:
        columns.append(model.head(hidden)[:, :vocab_size].argmax(-1))
        tokens = torch.stack(columns, 1)
        if done(tokens):
            break
        if len(columns) < max_new_tokens:
            hidden = model(tokens[:, -1:], cache=cache, logits=False).hidden[:, -1]
    return torch.stack(columns, 1)


@contextmanager
def nan_traced(model: "HybridLM", ids: Tensor) -> Iterator[None]:
    """A NaNError inside also says which layer gave the first NaN in the beginning of ids [B, T]."""
    try:
        yield
    except NaNError as error:
        where = first_nan(model, ids[0, :CHUNK].tolist())
        raise NaNError(f"{error}; in the first {CHUNK} tokens: {where}") from None


def target_scores(model: "HybridLM", hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of each target [...] given hidden [..., D], float32, and whether it is the likeliest.

    Raises NaNError when the model gives NaN.
    """
    hidden = hidden.flatten(0, -2)
    log_p, likeliest = target_log_p(model, hidden, torch.arange(len(hidden), device=hidden.device), targets.flatten())
    if bool(log_p.isnan().any()):
        raise NaNError("the model gives NaN; check its weights and precision")
    return -log_p.view_as(targets), likeliest.view_as(targets)
