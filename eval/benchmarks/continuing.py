"""Continuing prompts up to a stop string, in batches."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from ...lm.model import HybridLM
from ...lm.parts.errors import ConfigError
from ...lm.parts.strict import nearest

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer

OPTIONS = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")
PRIMER = 8  # prompt tokens in front of the decoder: more than the bytes of one character


class Sampling(NamedTuple):
    """How a text is continued; requests that agree in it can share a batch."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "Sampling":
        """From a task's generation_kwargs; greedy unless do_sample. Raises ConfigError for an option not in OPTIONS."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(options))
        for name in wanted:
            if name not in OPTIONS:
                raise ConfigError(f"generation_kwargs: {name!r} is not supported; {nearest(name, OPTIONS)}")
        until = tuple(stop for stop in wanted["until"] if stop)
        temperature = wanted.get("temperature", 1.0) if wanted["do_sample"] else 0.0
        return cls(until, wanted["max_gen_toks"], temperature, wanted.get("top_p", 1.0))


class Continuation:
    """The growing text behind one prompt. It ends before the first stop string or at EOS."""

    def __init__(self, tokenizer: "Tokenizer", prompt: list[int], until: tuple[str, ...]):
        self._eos, self._until, self._text, self.stopped = tokenizer.eos_id, until, "", False
        self._stream = tokenizer.stream()
        for token in prompt[-PRIMER:]:  # the decoder drops the space of a first token
            self._stream.push(token)

    def push(self, token: int) -> None:
        """One more token; ignored once stopped."""
        if self.stopped:
            return
        if token == self._eos:
            self.finish()
        else:
            self._append(self._stream.push(token))

    def finish(self) -> str:
        """The text, characters that were never completed included."""
        if not self.stopped:
            self._append(self._stream.flush())
            self.stopped = True
        return self._text

    def _append(self, piece: str) -> None:
        self._text += piece
        found = [self._text.find(stop) for stop in self._until if stop in self._text]
        if found:
            self._text, self.stopped = self._text[: min(found)], True


class _AllStopped(Exception):
    pass


def continue_batch(
    model: HybridLM, tokenizer: "Tokenizer", prompts: list[list[int]], sampling: Sampling, seed: int
) -> list[str]:
    """The text behind each prompt (token ids with BOS). Ends as soon as every row has stopped."""
    rows = [Continuation(tokenizer, prompt, sampling.until) for prompt in prompts]

    def watch(column: Tensor) -> None:
        for row, token in zip(rows, column.tolist(), strict=True):
            row.push(token)
        if all(row.stopped for row in rows):
            raise _AllStopped

    ids, mask = _pad_left(prompts, model.device)
    with suppress(_AllStopped):
        model.generate(
            ids,
            sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            attention_mask=mask,
            seed=seed,
            on_token=watch,
        )
    return [row.finish() for row in rows]


def _pad_left(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T], the real tokens at the right end."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
