"""Continuing prompts up to a stop string, in batches."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from ...lm.model import HybridLM
from ...lm.model.generate import check_options, decode
from ...lm.parts.errors import ConfigError, concerning
from ...lm.parts.strict import nearest

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer

OPTIONS = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")


class Sampling(NamedTuple):
    """How a text is continued; requests that agree in it can share a batch."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "Sampling":
        """From a task's generation_kwargs; greedy unless do_sample. An empty stop string stops nothing.

        Raises ConfigError for an option not in OPTIONS, or out of its range.
        """
        with concerning("generation_kwargs"):
            try:
                wanted: dict[str, Any] = dict(normalize_gen_kwargs(options))
                temperature = float(wanted.get("temperature", 1.0)) if wanted["do_sample"] else 0.0
                top_p = float(wanted.get("top_p", 1.0))
            except (TypeError, ValueError, OverflowError) as error:
                raise ConfigError(f"{error}; max_gen_toks, temperature and top_p are numbers") from None
            for name in wanted:
                if name not in OPTIONS:
                    raise ConfigError(f"{name!r} is not supported; {nearest(name, OPTIONS)}")
            for stop in wanted["until"]:
                if not isinstance(stop, str | None):
                    raise ConfigError(f"until: {stop!r} is no text; use text, or a list of texts")
            until = tuple(stop for stop in wanted["until"] if stop)
            check_options(wanted["max_gen_toks"], temperature, top_p, None)
        return cls(until, wanted["max_gen_toks"], temperature, top_p)


class Continuation:
    """The growing text behind one prompt. It ends before the first stop string or at a token that ends texts.

    A stop string is looked for in the text, where special tokens are left out, and in the text with their names in it.
    """

    def __init__(self, tokenizer: "Tokenizer", prompt: list[int], until: tuple[str, ...]):
        self._ends, self._special, self._until = tokenizer.stop_ids, tokenizer.special_names, until
        self._text, self._named, self.stopped = "", "", False
        self._names: list[tuple[int, int]] = []  # where in _named each name begins, and its length
        self._stream = tokenizer.stream(prompt)  # alone it would drop the space of a first token

    def push(self, token: int) -> None:
        """One more token; ignored once stopped."""
        if self.stopped:
            return
        if token in self._ends:
            self.finish()
        elif (name := self._special.get(token)) is not None:
            self._names.append((len(self._named), len(name)))
            self._append("", name)
        else:
            piece = self._stream.push(token)
            self._append(piece, piece)

    def finish(self) -> str:
        """The text, characters that were never completed included."""
        if not self.stopped:
            piece = self._stream.flush()
            self._append(piece, piece)
            self.stopped = True
        return self._text

    def _append(self, piece: str, named: str) -> None:
        self._text += piece
        self._named += named
        found = [place for stop in self._until if (place := self._text.find(stop)) >= 0]
        found += [self._before(place) for stop in self._until if (place := self._named.find(stop)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _before(self, place: int) -> int:
        """How much of the text stands before `place` in the text with names."""
        return place - sum(min(length, place - start) for start, length in self._names if start < place)


def continue_batch(
    model: HybridLM, tokenizer: "Tokenizer", prompts: list[list[int]], sampling: Sampling, seed: int
) -> list[str]:
    """The text behind each prompt (token ids with BOS). Ends as soon as every row has stopped."""
    rows = [Continuation(tokenizer, prompt, sampling.until) for prompt in prompts]

    ids, mask = _pad_left(prompts, model.device)
    columns = decode(
        model,
        ids,
        sampling.max_new_tokens,
        attention_mask=mask,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        vocab_size=tokenizer.vocab_size,
    )
    for column in columns:
        for row, token in zip(rows, column.tolist(), strict=True):
            row.push(token)
        if all(row.stopped for row in rows):
            break
    return [row.finish() for row in rows]


def _pad_left(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T], the real tokens at the right end."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
