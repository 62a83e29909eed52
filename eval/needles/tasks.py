"""What is hidden and what is asked: the tasks of RULER (Hsieh et al. 2024, arXiv 2404.06654, sec. 3) in their forms."""

import string
import uuid
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, NamedTuple

import numpy as np

from .lists import CommonWords, FrequentWords
from .words import FILLER, KEYS

Kind = Literal["words", "number", "uuid"]
Haystack = Literal["text", "filler", "needles"]
KINDS = {"words": "words", "number": "numbers", "uuid": "uuids"}


class Riddle(NamedTuple):
    """One draw of a task. The answers are what the model should write; `asked` is the needle that lies at the depth.

    needles: sentences to hide. in_order: whether they have to be met in this order. keys: what they are about.
    """

    intro: str
    needles: list[str]
    question: str
    answers: list[str]
    keys: list[str]
    asked: int | None
    in_order: bool = False


@dataclass(frozen=True)
class NeedleTask:
    """`keys` keys of which `asked` are asked for, with `values` values each, hidden in a haystack.

    haystack: `text` is prose, `filler` one short block over and over, `needles` other needles only.
    """

    haystack: Haystack
    key: Kind = "words"
    value: Kind = "number"
    keys: int = 1
    values: int = 1
    asked: int = 1
    max_new_tokens: int = 128

    @property
    def one_depth(self) -> bool:
        """Whether a single needle holds the answer, so that it has a depth."""
        return self.values * self.asked == 1

    def draw(self, rng: np.random.Generator) -> Riddle:
        """A random riddle; the key that is asked for stands at a random place among the others."""
        keys = draw_distinct(rng, self.key, self.keys)
        values = draw_distinct(rng, self.value, self.keys * self.values)
        pairs = [(key, values[i * self.values + j]) for i, key in enumerate(keys) for j in range(self.values)]
        asked, answers = keys[: self.asked], values[: self.asked * self.values]
        things = KINDS[self.value]
        intro = f"The text below hides some special magic {things}. Keep them in mind: they will be asked for.\n"
        return Riddle(
            intro,
            [needle(self.value, key, value) for key, value in pairs],
            self._question(asked, things if len(answers) > 1 else things[:-1], len(answers) > 1),
            answers,
            keys,
            0 if self.one_depth else None,
        )

    def distractors(self, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
        """n needles of different keys, each with its key; fewer where there are not as many keys."""
        keys = draw_distinct(rng, self.key, n)
        values = draw_distinct(rng, self.value, len(keys))
        return [(key, needle(self.value, key, value)) for key, value in zip(keys, values, strict=True)]

    @staticmethod
    def _question(asked: list[str], things: str, several: bool) -> str:
        *first, last = asked
        about = f"{', '.join(first)} and {last}" if first else last
        ask, verb = ("What are all the", "are") if several else ("What is the", "is")
        return (
            f"\n{ask} special magic {things} for {about} in the text above? "
            f"The special magic {things} for {about} in the text above {verb}"
        )


class Chain(NamedTuple):
    """Variables [hops + 1] that get one value, each from the one before, and the sentences that say so."""

    names: list[str]
    sentences: list[str]
    question: str

    @classmethod
    def draw(cls, rng: np.random.Generator, hops: int, letters: int) -> "Chain":
        alphabet = np.array(list(string.ascii_uppercase))
        drawn: dict[str, None] = {}
        while len(drawn) < hops + 1:
            drawn["".join(rng.choice(alphabet, letters))] = None
        names, value = list(drawn), str(rng.integers(10_000, 100_000))
        sources = [value, *(f"VAR {name}" for name in names)]
        question = (
            f"\nWhich variables of the text above have the value {value}, given to them directly or by way of other "
            f"variables? In the text above, {len(names)} variables have the value {value}, they are:"
        )
        sentences = [f"VAR {name} = {source}." for name, source in zip(names, sources, strict=False)]
        return cls(names, sentences, question)


@dataclass(frozen=True)
class VariableTracking:
    """A chain of assignments X1 = 12345, X2 = X1, ... of `hops` steps; asked for are all variables of that value.

    A short chain of shorter names goes before, with its answer.
    """

    hops: int = 4
    haystack: Haystack = "filler"
    max_new_tokens: int = 30
    one_depth: bool = False

    def draw(self, rng: np.random.Generator) -> Riddle:
        """A random chain, and the one that goes before."""
        intro = "The text below sets variables, one from another. Keep track of their values.\n"
        example, chain = Chain.draw(rng, self.hops, letters=3), Chain.draw(rng, self.hops, letters=5)
        told = "".join(f"{filler} {sentence}" for filler, sentence in zip(cycle(FILLER), example.sentences))
        solved = f"{intro}{told.strip()}{example.question} {', '.join(example.names)}\n\n"
        names = chain.names
        return Riddle(solved + intro, chain.sentences, chain.question, names, names, None, in_order=True)


TASKS: dict[str, NeedleTask | VariableTracking | CommonWords | FrequentWords] = {
    "single_1": NeedleTask("filler"),
    "single_2": NeedleTask("text"),
    "single_3": NeedleTask("text", value="uuid"),
    "multikey_1": NeedleTask("text", keys=4),
    "multikey_2": NeedleTask("needles"),
    "multikey_3": NeedleTask("needles", key="uuid", value="uuid"),
    "multivalue": NeedleTask("text", values=4),
    "multiquery": NeedleTask("text", keys=4, asked=4),
    "vt": VariableTracking(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
}


def needle(kind: Kind, key: str, value: str) -> str:
    """The sentence that holds one value."""
    return f"One of the special magic {KINDS[kind]} for {key} is: {value}."


def draw_distinct(rng: np.random.Generator, kind: Kind, n: int) -> list[str]:
    """n different keys or values, or as many as there are."""
    if kind == "words":
        n = min(n, len(KEYS))
        return [KEYS[i] for i in rng.choice(len(KEYS), n, replace=False)]
    found: dict[str, None] = {}
    while len(found) < n:
        text = (
            str(rng.integers(1_000_000, 10_000_000))
            if kind == "number"
            else str(uuid.UUID(bytes=rng.bytes(16), version=4))
        )
        found[text] = None
    return list(found)
