"""Sampling with the cache: temperature, nucleus (Holtzman et al. 2019, arXiv 1904.09751), stop tokens, streaming."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..parts.errors import NaNError
from .output import Output


class NaNLogits(NaNError):
    """The model gave NaN after what stands in `row`."""

    def __init__(self, row: int):
        super().__init__("the model gives NaN, so no text would mean anything; check its weights and precision")
        self.row = row


def generate(
    model: Callable[..., Output],
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    attention_mask: Tensor | None = None,
    seed: int | None = None,
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
    )
    return torch.cat([ids, *(column[:, None] for column in columns)], 1)


@torch.no_grad()
def decode(
    model: Callable[..., Output],
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    attention_mask: Tensor | None = None,
    seed: int | None = None,
) -> Iterator[Tensor]:
    """The tokens behind ids [B, T], one column [B] at a time as it is drawn, one state per row.

    A row that stopped repeats its stop token; the last column is the one with which all rows have stopped. temperature
    0 takes the most likely token. Nothing is computed for columns that are not asked for.

    Raises ValueError on an empty prompt, a negative temperature or top_p outside (0, 1]; NaNLogits when the model
    gives NaN, of which the argmax would be a token like any other.
    """
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"ids: expected a prompt [B, T] of at least one token, got shape {tuple(ids.shape)}")
    if temperature < 0:
        raise ValueError(f"temperature: {temperature} is negative; use 0 for the most likely token, or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: {top_p} is outside (0, 1]; 1 keeps every token")
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
        nan = scores.isnan().any(-1)
        drawn = torch.where(done, drawn, _draw(scores.nan_to_num(), temperature, top_p, generator))
        done = done | torch.isin(drawn, stops)
        failed, finished = torch.stack((nan.any(), done.all())).tolist()  # what the host has to know, in one copy
        if failed:
            raise NaNLogits(int(nan.nonzero()[0]))
        yield drawn
        if finished:
            return


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
    p = (scores.float() / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = p.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(outside, 0))
    return torch.multinomial(p, 1, generator=generator).squeeze(-1)
