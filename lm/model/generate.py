"""Sampling with the cache: temperature, nucleus (Holtzman et al. 2019, arXiv 1904.09751), stop tokens, streaming."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..parts.errors import NaNError

if TYPE_CHECKING:
    from .decoder import HybridLM


class NaNLogits(NaNError):
    """The model gave NaN after what stands in `row`."""

    def __init__(self, row: int):
        super().__init__("the model gives NaN, so no text would mean anything; check its weights and precision")
        self.row = row


def generate(
    model: "HybridLM",
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    attention_mask: Tensor | None = None,
    seed: int | None = None,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Continue ids [B, T] by up to max_new_tokens, one state per row. Returns [B, T + n].

    A row that stopped repeats its stop token. temperature 0 takes the most likely token. `on_token` receives each new
    column [B] as it is drawn.

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
    output = model(ids, attention_mask=attention_mask, cache=True)
    scores = _last(output.logits, attention_mask)
    columns = [ids]
    for step in range(max_new_tokens):
        if bool((nan := scores.isnan().any(-1)).any()):
            raise NaNLogits(int(nan.nonzero()[0]))
        drawn = _draw(scores, temperature, top_p, generator)
        drawn = torch.where(done, columns[-1][:, -1], drawn) if step else drawn
        columns.append(drawn[:, None])
        if on_token:
            on_token(drawn)
        done |= torch.isin(drawn, stops)
        if step + 1 == max_new_tokens or bool(done.all()):
            break
        output = model(drawn[:, None], cache=output.cache)
        scores = output.logits[:, -1]
    return torch.cat(columns, 1)


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
