"""Lists of words whose most frequent ones are asked for: aggregation in RULER (Hsieh et al. 2024, arXiv 2404.06654).

Nothing is hidden and there is no depth: a model has to count over the whole list.
"""

import math
import string
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from ...lm.parts.errors import ConfigError
from .prompt import Prompt
from .words import KEYS, WORDS

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer

LONG = 4096  # tokens from which RULER repeats words more often


class Listing(NamedTuple):
    """One draw of a task. words: those that come most often first. answer: how the right words follow the question."""

    intro: str
    words: list[str]
    question: str
    answer: str


@dataclass(frozen=True)
class CommonWords:
    """A numbered list: 10 words come 6 times each, all others once; 30 times and 3 times from 4096 tokens on.

    There are as many other words as fit. A short list with its answer goes before. Once single words might not
    suffice, all words are pairs of them.
    """

    one_depth: ClassVar[bool] = False
    max_new_tokens: ClassVar[int] = 120
    asked: ClassVar[slice] = slice(10)

    def counts(self, others: int, length: int, n_words: int) -> np.ndarray:
        """How often each of n_words comes in a list with that many others: [n_words]."""
        common, other = (30, 3) if length >= LONG else (6, 1)
        return np.repeat((common, other, 0), (10, others, n_words - 10 - others))

    def largest(self, length: int) -> int:
        """A number of others that is too many for `length` tokens, or the most there are."""
        fitting = length // (9 if length >= LONG else 3)  # a word with its number and full stop takes 3 tokens or more
        return min(fitting, len(KEYS) - 10)

    def label(self, i: int) -> str:
        """What stands before word i of the list."""
        return f" {i + 1}." if i else "\n1."

    def draw(self, rng: np.random.Generator, length: int) -> Listing:
        n = self.largest(length) + 10
        vocabulary = np.array(WORDS if n <= len(WORDS) else KEYS)
        words = rng.choice(vocabulary, n, replace=False).tolist()
        rare, repeats = (30, (10, 3)) if length >= LONG else (10, (3, 1))
        example = rng.choice(vocabulary, 10 + rare, replace=False).tolist()
        short = rng.permutation(np.repeat(example, np.repeat(repeats, (10, rare))))
        intro = "Below is a numbered list in which some words come more often than others. Keep in mind which they are."
        question = (
            "\nWhich 10 words come most often in the list above? "
            "The 10 words that come most often in the list above are:"
        )
        listed = "".join(f"{self.label(i)} {word}" for i, word in enumerate(short))
        solved = f"{intro}{listed}{question}{enumerated(example[:10])}\n"
        return Listing(solved + intro, words, question, enumerated(words[:10]))


@dataclass(frozen=True)
class FrequentWords:
    """Made-up words, the one of rank k as often as n k^-2 / zeta(2) rounded down; the first rank is dots, to be left
    out, and the next three are asked for. There is a word for every 50 tokens, and n is the largest that fits.
    """

    one_depth: ClassVar[bool] = False
    max_new_tokens: ClassVar[int] = 50
    asked: ClassVar[slice] = slice(1, 4)

    def counts(self, n: int, length: int, n_words: int) -> np.ndarray:
        """How often each of n_words comes, by rank: [n_words]."""
        return (n / np.arange(1, n_words + 1) ** 2 / (math.pi**2 / 6)).astype(int)

    def largest(self, length: int) -> int:
        """An n that is too many for `length` tokens."""
        return 2 * length

    def label(self, i: int) -> str:
        """What stands before word i of the list."""
        return ""

    def draw(self, rng: np.random.Generator, length: int) -> Listing:
        letters = np.array(list(string.ascii_lowercase))
        words = {"...": None}
        while len(words) < max((length - self.max_new_tokens) // 50, self.asked.stop + 1):
            words["".join(rng.choice(letters, 6))] = None
        ranked = list(words)
        return Listing(
            "The text below consists of coded words. Keep count of each of them; dots are no word.",
            ranked,
            "\nWhich three coded words come most often in the text above, dots left out? "
            "The three coded words that come most often in the text above are:",
            " " + ", ".join(ranked[self.asked]),
        )


class ListMaker:
    """The prompts of one task and length."""

    def __init__(
        self,
        name: str,
        task: CommonWords | FrequentWords,
        tokenizer: "Tokenizer",
        length: int,
        seed: Sequence[int],
    ):
        self.name, self.task, self.tokenizer, self.length, self.seed = name, task, tokenizer, length, seed
        self.most = task.largest(length)
        entries = min(length, int(task.counts(self.most, length, self.most + 10).sum()))  # no more words than tokens
        self.labels = tokenizer.encode_inside([task.label(i) for i in range(entries)])
        self.label_sizes = np.cumsum([0, *map(len, self.labels)])  # tokens of the first i labels: [entries + 1]

    def prompts(self, n: int) -> list[Prompt]:
        """n prompts, every one from a random stream of its own."""
        return [self._prompt(np.random.default_rng((*self.seed, i))) for i in range(n)]

    def _prompt(self, rng: np.random.Generator) -> Prompt:
        listing = self.task.draw(rng, self.length)
        intro = [*self.tokenizer.front, *self.tokenizer.encode(listing.intro)]
        pieces = [listing.question, listing.answer, *(f" {word}" for word in listing.words)]
        question, answer, *words = self.tokenizer.encode_inside(pieces)
        room = max(self.task.max_new_tokens, len(answer))
        counts = self._counts(np.array([len(word) for word in words]), len(intro) + len(question) + room)
        order = rng.permutation(np.repeat(np.arange(len(words)), counts))
        listed = [token for label, i in zip(self.labels, order, strict=False) for token in (*label, *words[i])]
        tokens = np.array([*intro, *listed, *question], dtype=np.int32)
        answers = tuple(listing.words[self.task.asked])
        return Prompt(self.name, self.length, None, tokens, answers, tuple(answer), room)

    def _counts(self, sizes: np.ndarray, frame: int) -> np.ndarray:
        """How often each word of `sizes` tokens comes in the longest list that fits beside `frame` other tokens."""

        def counts(n: int) -> np.ndarray:
            return self.task.counts(n, self.length, len(sizes))

        def tokens(n: int) -> int:
            times = counts(n)
            return frame + int(times @ sizes + self.label_sizes[min(times.sum(), len(self.labels))])

        n = bisect_right(range(self.most + 1), self.length, key=tokens) - 1
        if n < 0 or not self._clear(counts(n)):
            least = tokens(next(n for n in range(self.most + 1) if self._clear(counts(n))))
            raise ConfigError(
                f"lengths: {self.length} tokens do not hold a list of {self.name} and its answer; use {least + 100} or "
                "more"
            )
        return counts(n)

    def _clear(self, counts: np.ndarray) -> bool:
        """Whether there are other words, all of them less frequent than those that are asked for."""
        return bool(0 < counts[self.task.asked.stop] < counts[self.task.asked].min())


def enumerated(words: Sequence[str]) -> str:
    """Words with their numbers, as an answer lists them."""
    return "".join(f" {i + 1}. {word}" for i, word in enumerate(words))
