"""Prompts of an exact length in tokens, with the needles whole inside them."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...lm.data.document import digest
from ...lm.parts.errors import ConfigError, DataError
from ...lm.parts.strict import nearest
from .haystack import Haystack, Straw
from .lists import ListMaker
from .prompt import Prompt, read, write
from .tasks import TASKS, NeedleTask, Riddle, VariableTracking
from .words import FILLER

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer

FORMAT = 2  # of the prompts: another number for other words
DEPTHS = 40  # as many as RULER has
HAYSTACK = 4_000_000  # characters of a text that are used
SHORTEST_NEEDLE = 10  # tokens


def even_depths(depths: int | Sequence[float]) -> list[float]:
    """That many depths evenly from 0 to 1, or those given. Raises ConfigError for a depth outside [0, 1] or none."""
    if isinstance(depths, int):
        if depths < 1:
            raise ConfigError(f"depths: {depths} leaves none; use 1 or more")
        return [0.5] if depths == 1 else [i / (depths - 1) for i in range(depths)]
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise ConfigError(f"depths: {list(depths)}; give fractions from 0, the beginning, to 1, the end")
    return list(depths)


def make_prompts(
    tokenizer: "Tokenizer",
    tasks: Sequence[str],
    lengths: Sequence[int],
    *,
    depths: int | Sequence[float],
    samples: int,
    haystack: str,
    seed: int,
    cache: str | Path | None = None,
) -> Iterator[list[Prompt]]:
    """The prompts of each task and length, a list at a time; those of a task and length do not depend on the others.

    cache: folder whose subfolder `needles` keeps them, by everything they depend on. Raises ConfigError for an unknown
    task, a depth outside [0, 1], a length that holds no prompt; DataError when tokens do not give the needles back.
    """
    for name in tasks:
        if name not in TASKS:
            raise ConfigError(f"needle task {name!r}: unknown; {nearest(name, TASKS)}")
    fractions = even_depths(depths)
    text_hash = hashlib.sha256(haystack.encode()).hexdigest()
    encoded = once(lambda: Haystack.from_text(haystack[:HAYSTACK], tokenizer))
    for name in tasks:
        for length in lengths:
            what = (FORMAT, tokenizer.prompt_fingerprint, text_hash, name, length, fractions, samples, seed)
            file = Path(cache).expanduser() / "needles" / f"{digest(*what)}.npz" if cache else None
            if file and file.is_file():
                yield read(file)
                continue
            task = TASKS[name]
            stream = (seed, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16), length)
            if isinstance(task, NeedleTask | VariableTracking):
                hay = encoded() if task.haystack == "text" else Haystack(tokenizer.encode_inside(FILLER))
                prompts = PromptMaker(name, task, hay, tokenizer, length, stream).prompts(fractions, samples)
            else:
                prompts = ListMaker(name, task, tokenizer, length, stream).prompts(len(fractions) * samples)
            if file:
                write(file, prompts)
            yield prompts


class Draft(NamedTuple):
    """A riddle in tokens, what stands in front included in the intro, and the random stream that will hide it."""

    depth: float
    rng: np.random.Generator
    riddle: Riddle
    intro: list[int]
    question: list[int]
    answer: list[int]
    needles: list[list[int]]


class PromptMaker:
    """The prompts of one task and length. The haystack comes encoded; a prompt costs one call of the tokenizer."""

    def __init__(
        self,
        name: str,
        task: NeedleTask | VariableTracking,
        hay: Haystack,
        tokenizer: "Tokenizer",
        length: int,
        seed: Sequence[int],
    ):
        self.name, self.task, self.hay, self.tokenizer, self.length = name, task, hay, tokenizer, length
        self.seed = seed
        self.keys: list[str] = []
        if isinstance(self.task, NeedleTask) and self.task.haystack == "needles":
            pairs = self.task.distractors(np.random.default_rng(self.seed), length // SHORTEST_NEEDLE + 8)
            self.keys = [key for key, _ in pairs]
            self.pool = tokenizer.encode_inside([f"\n{sentence}" for _, sentence in pairs])

    def prompts(self, depths: Sequence[float], samples: int) -> list[Prompt]:
        """`samples` prompts of each depth, every one from a random stream of its own."""
        streams = [(depth, (*self.seed, i, j)) for i, depth in enumerate(depths) for j in range(samples)]
        drafts = [self._draft(depth, np.random.default_rng(stream)) for depth, stream in streams]
        # a small vocabulary may need more tokens for an answer than a task gives
        room = max(self.task.max_new_tokens, *(len(draft.answer) for draft in drafts))
        return [self._prompt(draft, room) for draft in drafts]

    def _draft(self, depth: float, rng: np.random.Generator) -> Draft:
        riddle = self.task.draw(rng)
        answer = " " + ", ".join(riddle.answers)
        intro = [*self.tokenizer.front, *self.tokenizer.encode(riddle.intro)]
        pieces = [riddle.question, answer, *(f" {sentence}" for sentence in riddle.needles)]
        question, answer_tokens, *needles = self.tokenizer.encode_inside(pieces)
        return Draft(depth, rng, riddle, intro, question, answer_tokens, needles)

    def _prompt(self, draft: Draft, room: int) -> Prompt:
        frame = len(draft.intro) + len(draft.question) + sum(map(len, draft.needles))
        n = self.length - frame - room
        if n < 1:
            raise ConfigError(
                f"lengths: {self.length} tokens do not hold a prompt of {self.name} and its answer, which take "
                f"{self.length - n} without a haystack; use {self.length - n + 100} or more"
            )
        straw = self._straw(n, draft.riddle, draft.rng)
        hidden = hide(straw, draft.needles, self._places(draft, straw))
        tokens = np.array([*draft.intro, *hidden, *draft.question], dtype=np.int32)
        assert len(tokens) + room == self.length
        self._check(tokens, draft.riddle)
        depth = draft.depth if self.task.one_depth else None
        answers = tuple(answer.lower() for answer in draft.riddle.answers)
        return Prompt(self.name, self.length, depth, tokens, answers, tuple(draft.answer), room)

    def _straw(self, n: int, riddle: Riddle, rng: np.random.Generator) -> Straw:
        """n tokens of haystack: of other needles in random order, or from a random place of the text."""
        if not self.keys:
            return self.hay.draw(n, rng)
        sentences, size = [], 0
        for i in rng.permutation(len(self.pool)):
            if self.keys[i] not in riddle.keys and size < n:
                sentences.append(self.pool[i])
                size += len(self.pool[i])
        return Haystack(sentences).cut(n, size)

    def _places(self, draft: Draft, straw: Straw) -> np.ndarray:
        """Where in the straw each needle goes: the end of a sentence that is nearest to its depth."""
        wanted = draft.rng.choice(even_depths(DEPTHS), len(draft.needles))
        if draft.riddle.asked is not None:
            wanted[draft.riddle.asked] = draft.depth
        if draft.riddle.in_order:
            wanted.sort()
        targets = wanted * len(straw.tokens)
        return straw.places[np.abs(straw.places - targets[:, None]).argmin(1)]

    def _check(self, tokens: np.ndarray, riddle: Riddle) -> None:
        text = self.tokenizer.decode(tokens.tolist())
        for sentence in riddle.needles:
            if sentence not in text:
                raise DataError(
                    f"needles: this tokenizer does not give back {sentence!r} from its tokens; use one that keeps text "
                    "as it is"
                )


def hide(straw: Straw, needles: Sequence[list[int]], places: np.ndarray) -> list[int]:
    """The straw's tokens with needle i put in before token `places[i]`; needles of one place keep their order."""
    tokens: list[int] = []
    done = 0
    for i in np.argsort(places, kind="stable"):
        tokens += straw.tokens[done : places[i]].tolist() + needles[i]
        done = places[i]
    return tokens + straw.tokens[done:].tolist()
