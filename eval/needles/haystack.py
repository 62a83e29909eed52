"""Tokens to hide needles in, encoded once, and the places between them where a needle may go."""

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from ...lm.parts.errors import DataError

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer

SENTENCE_END = re.compile("(?<=[.!?])[\"'\u201d\u2019)]*\\s+")


class Straw(NamedTuple):
    """A stretch of haystack: tokens [n], and the rising places in 0..n, both included, where a sentence ends."""

    tokens: np.ndarray
    places: np.ndarray


class Haystack:
    """Sentences in tokens, end to end and over again when more are needed.

    tokens: [n]. ends: [number of sentences], where each of them stops.
    """

    def __init__(self, sentences: list[list[int]]):
        self.tokens = np.concatenate([np.array(ids, dtype=np.int32) for ids in sentences])
        self.ends = np.cumsum([len(ids) for ids in sentences])

    @classmethod
    def from_text(cls, text: str, tokenizer: "Tokenizer") -> Self:
        """The text's sentences, every run of white space one space. Raises DataError when there is no sentence."""
        sentences = [" ".join(part.split()) for part in split_sentences(text)]
        sentences = [sentence for sentence in sentences if sentence]
        if not sentences:
            raise DataError("haystack: the text is empty; give a longer one")
        return cls(tokenizer.encode_inside([f" {sentence}" for sentence in sentences]))

    def draw(self, n: int, rng: np.random.Generator) -> Straw:
        """n tokens that stop where a random sentence does; only their first sentence may lack its beginning."""
        return self.cut(n, int(rng.choice(self.ends)))

    def cut(self, n: int, stop: int) -> Straw:
        """The n tokens before position `stop`, where a sentence ends."""
        start, size = stop - n, len(self.tokens)
        tokens = self.tokens[np.arange(start, stop) % size]
        rounds = np.arange(start // size, stop // size + 1) * size
        ends = (rounds[:, None] + self.ends).flatten() - start
        places = np.unique(np.concatenate(([0], ends[(ends > 0) & (ends < n)], [n])))
        return Straw(tokens, places)


def split_sentences(text: str) -> list[str]:
    """Parts that end in a full stop, question or exclamation mark with its closing quotes, without the white space."""
    starts = [0, *(found.end() for found in SENTENCE_END.finditer(text)), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(starts)]
