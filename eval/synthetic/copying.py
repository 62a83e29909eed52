"""Copying ("Repeat After Me", Jelassi et al. 2024, arXiv 2402.01032): whole strings, n-gram look-up, a phonebook.

The answer is fed back as input behind the question, so that `exact` (every token of the answer right) is the share of
the examples that greedy decoding answers without a mistake: it goes on from right tokens as long as it makes none.
"""

from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from ...lm.model.loss import IGNORE
from ...lm.parts.ranges import LONGEST, WIDEST
from .drawing import derive, distinct, generator
from .task import Anchor, Examples, Task

FIRST_NAMES = """
Abel Agda Arno Bela Birte Bruno Cara Ceno Dagny Dario Edda Elvo Enid Fenna Filo Gerda Gino Hanno Hedda Ida Ilmo
Jorun Jutta Kai Karo Lena Livio Maren Milo Nanna Nilo Oda Orlo Pia Piet Runa Sanna Silo Tilda Timo Ulla Vito Wanda
Xeno Ylva Yorick Zita Zeno
""".split()  # noqa: SIM905
LAST_NAMES = """
Adler Amsel Bach Baumann Birk Brandt Dachs Dorn Eibe Erlen Falk Farn Fink Forst Fuchs Garten Ginster Gruber Hagen
Halm Hasel Heide Holm Igel Kamp Keller Kiesel Klee Kranich Lerche Linde Luchs Marder Moor Nessel Otter Pappel Quell
Rabe Reh Ried Sander Specht Tann Ulme Wald Weide Ziegler
""".split()  # noqa: SIM905


class Copy(Task):
    """BOS s_1 ... s_m SEP s_1 ... s_m, the letters uniform, m uniform in [min_string, max_string].

    SEP asks for s_1, each copied letter for the next, the last for EOS. Ids: letters, BOS, SEP, EOS; what is left of
    the row is EOS.
    """

    kind: ClassVar[str] = "copy"
    vocab_size: int = Field(default=29, gt=4, le=LONGEST)
    length: int = Field(default=0, ge=0, le=LONGEST, description="2 max_string + 2; leave it out")
    max_string: int = Field(default=20, gt=0, le=WIDEST)
    min_string: int = Field(default=1, gt=0, le=WIDEST)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_string > self.max_string:
            raise ValueError(f"copy.min_string: {self.min_string} exceeds max_string={self.max_string}; lower it")
        return derive(self, length=2 * self.max_string + 2)

    @property
    def label(self) -> str:
        return f"copy {self.min_string}-{self.max_string}"

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        letters = self.vocab_size - 3
        bos, sep, eos = letters, letters + 1, letters + 2
        strings = rng.integers(0, letters, (n, self.max_string))
        sizes = rng.integers(self.min_string, self.max_string + 1, n)
        inputs = np.full((n, self.length), eos)
        labels = np.full_like(inputs, IGNORE)
        for row, (string, m) in enumerate(zip(strings, sizes, strict=True)):
            inputs[row, : 2 * m + 2] = (bos, *string[:m], sep, *string[:m])
            labels[row, m + 1 : 2 * m + 2] = (*string[:m], eos)
        return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))

    def anchors(self) -> list[Anchor]:
        """Chance per token."""
        return [Anchor("chance", "accuracy", 1 / (self.vocab_size - 3), "closed form")]


class NgramLookup(Task):
    """What follows an n-gram that stands exactly once in a string of `string` letters: the `answer` letters after it.

    `query: before`: BOS g_1 .. g_n SEP s_1 .. s_m SEP, known in advance what to keep; `query: after`: BOS s_1 .. s_m
    SEP g_1 .. g_n SEP, so that everything has to be kept. The last SEP asks for the first letter of the answer.
    """

    kind: ClassVar[str] = "ngram_lookup"
    vocab_size: int = Field(default=28, gt=3, le=LONGEST)
    length: int = Field(default=0, ge=0, le=LONGEST, description="string + ngram + answer + 2; leave it out")
    string: int = Field(default=20, gt=0, le=WIDEST)
    ngram: int = Field(default=2, gt=0, le=WIDEST)
    answer: int = Field(default=1, gt=0, le=WIDEST)
    query: Literal["before", "after"] = "after"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.ngram + self.answer > self.string:
            raise ValueError(
                f"ngram_lookup.string: {self.string} letters hold no {self.ngram}-gram with {self.answer} letters "
                f"after it; use at least {self.ngram + self.answer}"
            )
        if (self.vocab_size - 2) ** self.ngram < self.string:
            raise ValueError(
                f"ngram_lookup.ngram: {self.vocab_size - 2} letters make {(self.vocab_size - 2) ** self.ngram} "
                f"{self.ngram}-grams, hardly one of which stands only once in string={self.string}; use a longer one"
            )
        return derive(self, length=self.string + self.ngram + self.answer + 2)

    @property
    def label(self) -> str:
        return f"ngram_lookup {self.query} n{self.ngram} m{self.string}"

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        letters, m = self.vocab_size - 2, self.string
        strings, places = np.empty((n, m), np.int64), np.empty(n, np.int64)
        todo = np.arange(n)
        while len(todo):  # rows whose n-gram stands elsewhere too are drawn anew
            strings[todo] = rng.integers(0, letters, (len(todo), m))
            places[todo] = rng.integers(0, m - self.ngram - self.answer + 1, len(todo))
            todo = todo[_occurrences(strings[todo], _cut(strings[todo], places[todo], self.ngram)) > 1]
        query, answer = _cut(strings, places, self.ngram), _cut(strings, places + self.ngram, self.answer)
        bos, sep = (np.full((n, 1), letters + i) for i in range(2))
        first, second = (query, strings) if self.query == "before" else (strings, query)
        inputs = np.concatenate((bos, first, sep, second, sep, answer[:, :-1]), 1)
        labels = np.full_like(inputs, IGNORE)
        labels[:, -self.answer :] = answer
        return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))

    def anchors(self) -> list[Anchor]:
        """Chance per token."""
        return [Anchor("chance", "accuracy", 1 / (self.vocab_size - 2), "closed form")]


class Phonebook(Task):
    """`entries` lines "First Last: number", two of them repeated, then a third one's name, which asks for its number.

    Names are different and uniform; a number has `digits` digits, the first one 6 to 9. Ids: the digits, ":", the end
    of a line, first names, last names; `render` turns them into text.
    """

    kind: ClassVar[str] = "phonebook"
    vocab_size: int = Field(default=0, ge=0, le=LONGEST, description="digits, marks and names; leave it out")
    length: int = Field(default=0, ge=0, le=LONGEST, description="follows from entries and digits; leave it out")
    entries: int = Field(default=20, gt=2, le=len(FIRST_NAMES) * len(LAST_NAMES))
    digits: int = Field(default=10, gt=0, le=WIDEST)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        line = self.digits + 4
        return derive(self, vocab_size=len(WORDS), length=line * (self.entries + 2) + self.digits + 2)

    @property
    def label(self) -> str:
        return f"phonebook N{self.entries}"

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        people = distinct(rng, len(FIRST_NAMES) * len(LAST_NAMES), self.entries, (n,))
        first, last = np.divmod(people, len(LAST_NAMES))
        numbers = rng.integers(0, 10, (n, self.entries, self.digits))
        numbers[..., 0] = rng.integers(6, 10, (n, self.entries))
        marks = np.full((n, self.entries, 2), WORDS.index(":"))
        marks[..., 1] = WORDS.index("\n")
        lines = np.concatenate(
            (FIRST + first[..., None], LAST + last[..., None], marks[..., :1], numbers, marks[..., 1:]), 2
        )  # [n, entries, digits + 4]
        chosen = distinct(rng, self.entries, 3, (n,))
        repeated = np.take_along_axis(lines, chosen[..., None], 1)  # two worked examples and the question
        question = repeated[:, 2, :-2]  # neither the last digit nor the end of the line
        inputs = np.concatenate((lines.reshape(n, -1), repeated[:, :2].reshape(n, -1), question), 1)
        labels = np.full_like(inputs, IGNORE)
        labels[:, -self.digits :] = repeated[:, 2, 3:-1]
        return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))

    @staticmethod
    def render(ids: torch.Tensor) -> str:
        """One row of ids as text: "Edda Falk: 7012345678" and so on, an open line at the end."""
        words = [WORDS[i] for i in ids.tolist()]
        spaced = [(" " if word in LAST_NAMES else "") + word + (" " if word == ":" else "") for word in words]
        return "".join(spaced)

    def anchors(self) -> list[Anchor]:
        """Chance per digit, and for a guesser who answers with the number of one of the entries, exact match."""
        return [
            Anchor("chance", "accuracy", (1 / 4 + (self.digits - 1) / 10) / self.digits, "closed form"),
            Anchor("any entry's number", "exact", 1 / self.entries, "closed form"),
        ]


WORDS = [*"0123456789", ":", "\n", *FIRST_NAMES, *LAST_NAMES]
FIRST, LAST = 12, 12 + len(FIRST_NAMES)


def _cut(strings: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """`size` letters of each row from its place on: [n, m], [n] -> [n, size]."""
    return np.take_along_axis(strings, places[:, None] + np.arange(size), 1)


def _occurrences(strings: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """How often each row's n-gram stands in it, overlaps included: [n, m], [n, size] -> [n]."""
    windows = np.lib.stride_tricks.sliding_window_view(strings, grams.shape[1], axis=1)  # [n, m - size + 1, size]
    return (windows == grams[:, None]).all(2).sum(1)
