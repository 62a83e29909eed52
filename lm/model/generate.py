"""Sampling with the cache: temperature, nucleus (Holtzman et al. 2019, arXiv 1904.09751), stop tokens, streaming."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol
from warnings import warn

import torch
from torch import Tensor

from ..parts.errors import Caution, ConfigError, NaNError
from .limits import length_limit
from .output import Output

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig


class NaNLogits(NaNError):
    """The model gave NaN after what stands in `row`."""

    def __init__(self, row: int):
        super().__init__("the model gives NaN, so no text would mean anything; check its weights and precision")
        self.row = row


class Decoder(Protocol):
    """A model as decoding sees it: a `HybridLM`, also behind a wrapper."""

    config: "BaseModelConfig"

    def __call__(self, ids: Tensor, /, *, attention_mask: Tensor | None = ..., cache: Any = ...) -> Output: ...


def generate(
    model: Decoder,
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    attention_mask: Tensor | None = None,
    seed: int | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Continue ids [B, T] by up to max_new_tokens, see `decode`. Returns [B, T + n]."""
    columns = decode(
        model,
        ids,
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_ids=stop_ids,
        attention_mask=attention_mask,
        seed=seed,
        vocab_size=vocab_size,
    )
    return torch.cat([ids, *(column[:, None] for column in columns)], 1)


@torch.no_grad()
def decode(
    model: Decoder,
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    attention_mask: Tensor | None = None,
    seed: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[Tensor]:
    """The tokens behind ids [B, T], one column [B] at a time as it is drawn, one state per row.

    A row that stopped repeats its stop token; the last column is the one with which all rows have stopped. temperature
    0 takes the most likely token. Nothing is computed for columns that are not asked for. attention_mask: [B, T], 0 at
    padding, which may be anywhere in a row. vocab_size: that of the tokenizer; ids from there on are padding of the
    embedding and never drawn. Warns once where text goes on beyond what a model with absolute positions was trained on.

    Raises ConfigError, a ValueError, without a row or with a row without a token, on options out of range, and when a
    model with learned positions has too few; NaNLogits when the model gives NaN, of which the argmax would be a token
    like any other.
    """
    check_options(max_new_tokens, temperature, top_p, seed)
    beyond = _room(model.config, _longest(ids, attention_mask), max_new_tokens)
    generator = None if seed is None else torch.Generator(ids.device).manual_seed(seed)
    stops = torch.tensor(stop_ids, dtype=ids.dtype, device=ids.device)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    drawn = ids[:, -1]
    output = model(ids, attention_mask=attention_mask, cache=True)
    assert output.logits is not None
    scores = _last(output.logits, attention_mask)
    for step in range(max_new_tokens):
        if step:
            output = model(drawn[:, None], cache=output.cache)
            assert output.logits is not None
            scores = output.logits[:, -1]
        if step == beyond:
            warn(_BEYOND.format(model.config.context), Caution, stacklevel=2)
        nan = scores.isnan().any(-1)
        drawn = torch.where(done, drawn, _draw(scores[:, :vocab_size].nan_to_num(), temperature, top_p, generator))
        done = done | torch.isin(drawn, stops)
        failed, finished = torch.stack((nan.any(), done.all())).tolist()  # what the host has to know, in one copy
        if failed:
            raise NaNLogits(int(nan.nonzero()[0]))
        yield drawn
        if finished:
            return


_BEYOND = (
    "the text goes on beyond the {0} tokens that the model was trained on at a time (model.context); what it writes "
    "from there may make no sense"
)


def check_options(max_new_tokens: int, temperature: float, top_p: float, seed: int | None) -> None:
    """Raises ConfigError, a ValueError, naming the option that is out of range."""
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens: {max_new_tokens} is negative; use 0 or more")
    if temperature < 0:
        raise ConfigError(f"temperature: {temperature} is negative; use 0 for the most likely token, or more")
    if not math.isfinite(temperature):
        raise ConfigError(f"temperature: {temperature} is no number; use 0 for the most likely token, or more")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p: {top_p} is outside (0, 1]; 1 keeps every token")
    if seed is not None and not 0 <= seed < 2**64:
        raise ConfigError(f"seed: {seed} is outside 0 ... 2^64 - 1; use one of these")


def _longest(ids: Tensor, mask: Tensor | None) -> int:
    """Tokens of the longest row. Raises ConfigError where a row has none, or there is no row."""
    if ids.ndim != 2 or not ids.numel():
        raise ConfigError(f"ids: expected prompts [B, T], at least one of at least one token, got {tuple(ids.shape)}")
    if mask is None or mask.shape != ids.shape:  # the model says what is wrong with another shape
        return ids.shape[1]
    lengths = mask.bool().sum(1).tolist()
    if 0 in lengths:
        raise ConfigError(
            f"attention_mask: row {lengths.index(0)} is padding only, and has nothing to continue; leave the row out, "
            "or begin it with a BOS token"
        )
    return max(lengths)


def _room(config: "BaseModelConfig", longest: int, new: int) -> int | None:
    """The step whose token is the first beyond what the model was trained on; None where there is none.

    Raises ConfigError when there are no positions for what the model would have to read.
    """
    limit = length_limit(config)
    if limit is None:
        return None
    if config.positions != "learned":
        return max(limit - longest, 0)
    if longest + max(new - 1, 0) > limit:  # the last token is drawn, not read
        fix = "shorten the prompt" if longest > limit else f"use max_new_tokens={limit - longest + 1} or less"
        raise ConfigError(
            f"max_new_tokens: {new} after a prompt of {longest} tokens, but model.positions=learned ends at {limit}; "
            f"{fix}"
        )
    return None


def _last(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Scores [B, V] after each row's last real token."""
    if mask is None:
        return logits[:, -1]
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), positions, -1).amax(1)
    return logits[torch.arange(len(mask), device=mask.device), last]


def _draw(scores: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One token per row [B]: from the smallest set of likeliest tokens whose probability reaches top_p."""
    if temperature == 0:
        return scores.argmax(-1)
    scores = scores.float()
    least = torch.finfo(torch.float32).tiny  # a temperature below it would divide by 0
    p = ((scores - scores.amax(-1, keepdim=True)) / max(temperature, least)).softmax(-1)
    if top_p < 1:
        ordered, order = p.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(outside, 0))
    return torch.multinomial(p, 1, generator=generator).squeeze(-1)
