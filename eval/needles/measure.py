"""Asking a model: what it writes after each prompt, and what it thinks of the right answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...lm.data.document import digest
from ...lm.parts.errors import ConfigError
from ..forward.long_context import check_length, greedy, length_limit, nan_traced, prefill, target_scores
from ..forward.scoring import inference
from .prompt import Prompt
from .prompts import DEPTHS, FORMAT, even_depths, make_prompts
from .results import Answered, Needles, summarise

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.model import HybridLM
    from ...lm.model.cache import Cache
    from ...lm.recipe.model import BaseModelConfig


@dataclass(frozen=True)
class Questions:
    """Needles in the text `haystack`, of RULER's tasks but for its questions, see `tasks.TASKS`.

    lengths: tokens of BOS, prompt and room for the answer together, kept exactly, or by lists of words (cwe, fwe) as
    nearly as whole words allow; nothing is ever cut. depths: a number of even ones, or fractions; `samples` prompts of
    each, and as many of a task without depths. beyond: `error` or `run`, for lengths over what the model's rotary
    attention was trained for. cache: folder to keep prompts in. name: of the haystack.
    """

    tasks: Sequence[str]
    lengths: Sequence[int]
    haystack: str
    depths: int | Sequence[float] = DEPTHS
    samples: int = 1
    seed: int = 0
    beyond: str = "error"
    cache: str | Path | None = None
    name: str = "text"

    def prompts(self, config: "BaseModelConfig", tokenizer: "Tokenizer") -> Iterator[list[Prompt]]:
        """What is put to a model of this configuration, a list for each task and length.

        Raises ConfigError for what cannot be, DataError for a haystack or tokenizer that cannot be used.
        """
        if not self.tasks or not self.lengths or self.samples < 1:
            raise ConfigError(
                f"needles: tasks={list(self.tasks)}, lengths={list(self.lengths)}, samples={self.samples} ask for "
                "nothing"
            )
        for length in self.lengths:
            check_length(config, length, self.beyond, "lengths")
        return make_prompts(
            tokenizer,
            self.tasks,
            self.lengths,
            depths=self.depths,
            samples=self.samples,
            haystack=self.haystack,
            seed=self.seed,
            cache=self.cache,
        )

    @property
    def fingerprint(self) -> str:
        """12 hex digits of everything that makes the questions."""
        what = (list(self.tasks), list(self.lengths), even_depths(self.depths), self.samples, self.haystack, self.seed)
        return digest(FORMAT, *what)[:12]


def measure_needles(
    model: "HybridLM",
    tokenizer: "Tokenizer",
    questions: Questions,
    *,
    batch_tokens: int = 8192,
    generate: bool = True,
    checkpoint: str = "",
    progress: bool = False,
) -> Needles:
    """Put the questions to a model, whose mode stays as it was, as do all random states.

    The score is the share of right answers contained in the lower-cased text of up to 128 greedy tokens (30 for vt, 120
    for cwe, 50 for fwe; more where a tokenizer needs them). generate=False leaves that out and gives only what teacher
    forcing says of the right answer's tokens. batch_tokens: tokens of the prompts that run side by side. progress: a
    bar on stderr. Raises what `Questions.prompts` does.
    """
    answered = []
    with inference(model):
        drawn = questions.prompts(model.config, tokenizer)
        total = len(questions.tasks) * len(questions.lengths)
        for prompts in tqdm(drawn, "needles", total, disable=not progress):
            for group in _side_by_side(prompts, batch_tokens):
                answered += _ask(model, tokenizer, group, generate)
    cells, totals = summarise(answered, length_limit(model.config))
    return Needles(cells, totals, questions.name, questions.fingerprint, checkpoint)


def _side_by_side(prompts: list[Prompt], batch_tokens: int) -> Iterator[list[Prompt]]:
    """Prompts of one size in tokens and one room for the answer: there is no padding."""

    def size(prompt: Prompt) -> tuple[int, int]:
        return len(prompt.tokens), prompt.max_new_tokens

    rows = max(1, batch_tokens // prompts[0].length)
    for _, same in groupby(sorted(prompts, key=size), size):
        alike = list(same)
        yield from (alike[start : start + rows] for start in range(0, len(alike), rows))


def _ask(model: "HybridLM", tokenizer: "Tokenizer", prompts: list[Prompt], generate: bool) -> list[Answered]:
    """What the model makes of prompts that lie side by side."""
    ids = torch.from_numpy(np.stack([prompt.tokens for prompt in prompts])).long().to(model.device)
    with nan_traced(model, ids):
        hidden, state = prefill(model, ids)
        forced = list(_teacher_force(model, hidden, state.select(list(range(len(prompts)))), prompts))
    scores: list[float | None] = [None] * len(prompts)
    if generate:
        listener = _Listener(tokenizer, prompts)
        greedy(model, hidden, state, prompts[0].max_new_tokens, listener, tokenizer.vocab_size)
        scores = [found / len(prompt.answers) for found, prompt in zip(listener.found(), prompts, strict=True)]
    return [Answered(prompt, score, *rest) for prompt, score, rest in zip(prompts, scores, forced, strict=True)]


def _teacher_force(
    model: "HybridLM", hidden: Tensor, state: "Cache", prompts: list[Prompt]
) -> Iterator[tuple[float, float, float]]:
    """Of each prompt's answer: share of its tokens that are the model's choice, whether all are, mean -log p."""
    answers = [torch.tensor(prompt.answer, device=hidden.device) for prompt in prompts]
    n = [len(answer) for answer in answers]
    before = torch.cat([answer[:-1] for answer in answers])
    bounds = torch.tensor([0, *(length - 1 for length in n)], device=hidden.device).cumsum(0)
    rest = hidden[:0]
    if len(before):
        rest = model(before[None], cu_seqlens=bounds, cache=state, logits=False).hidden[0]
    parts = [torch.cat((h[None], more)) for h, more in zip(hidden, rest.split((bounds.diff()).tolist()), strict=True)]
    nats, likeliest = target_scores(model, torch.cat(parts), torch.cat(answers))
    for cost, right in zip(nats.split(n), likeliest.split(n), strict=True):
        yield float(right.double().mean()), float(right.all()), float(cost.double().mean())


class _Listener:
    """Reads along while rows are written: a row is over at an end of text, or when all its answers have been said."""

    def __init__(self, tokenizer: "Tokenizer", prompts: list[Prompt]):
        self.tokenizer, self.prompts = tokenizer, prompts
        self.texts = [""] * len(prompts)
        self.over = [False] * len(prompts)

    def __call__(self, tokens: Tensor) -> bool:
        """tokens: [B, n], all that was written so far. Whether every row is over."""
        for i, row in enumerate(tokens.tolist()):
            if self.over[i]:
                continue
            self.over[i] = row[-1] in self.tokenizer.stop_ids
            self.texts[i] = self.tokenizer.decode(row).lower()
            self.over[i] |= all(answer in self.texts[i] for answer in self.prompts[i].answers)
        return all(self.over)

    def found(self) -> list[int]:
        """Answers in each row's text."""
        return [sum(a in text for a in prompt.answers) for text, prompt in zip(self.texts, self.prompts, strict=True)]
