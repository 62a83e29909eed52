"""MAD's three tasks of recall in context: exact, among noise, and of motifs; see `mad` for what they share."""

from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from ...lm.model.loss import IGNORE
from ...lm.parts.ranges import LONGEST, WIDEST
from .drawing import distinct, generator
from .mad import MadTask, labelled_examples
from .task import Examples


class MadRecall(MadTask):
    """In-context recall: pairs k v k v ..., drawn with replacement; from its second time on, a key asks for its value.

    Keys are the ids below half of the content, values the rest of it; each example has a map of its own. The last pair
    always repeats a key. With `noise`, that share of the pairs is two tokens of a vocabulary of their own instead.
    """

    kind: ClassVar[str] = "mad_recall"
    vocab_size: int = Field(default=16, gt=3, le=LONGEST)
    noise_vocab: int = Field(default=0, ge=0, le=LONGEST, description="the last ids of the vocabulary, for noise alone")
    noise: float = Field(default=0.0, ge=0, lt=1, description="share of the pairs that are noise")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        content = self.vocab_size - self.noise_vocab
        if self.length % 2:
            raise ValueError(
                f"{self.kind}.length: {self.length} is odd, the sequence is made of pairs; use an even one"
            )
        if content < 4:
            raise ValueError(
                f"{self.kind}.vocab_size: {self.vocab_size} minus noise_vocab={self.noise_vocab} leaves {content}; "
                f"two keys and two values need 4"
            )
        if self.noise and not self.noise_vocab:
            raise ValueError(f"{self.kind}.noise_vocab: 0, but noise={self.noise:g} needs tokens; use 16, for example")
        return self

    @property
    def label(self) -> str:
        return f"{self.kind} V{self.vocab_size} L{self.length}" + (f" noise {self.noise:g}" if self.noise else "")

    def chance(self) -> float:
        content = self.vocab_size - self.noise_vocab
        return 1 / (content - content // 2)

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        pairs, content = self.length // 2, self.vocab_size - self.noise_vocab
        n_keys = content // 2
        keys = rng.integers(0, n_keys, (n, pairs))
        values = rng.integers(n_keys, content, (n, n_keys))
        noisy = rng.random((n, pairs)) < self.noise
        noisy[np.arange(n), rng.integers(0, pairs - 1, n)] = False  # at least one key to ask for at the end
        noisy[:, -1] = False
        first = _first_places(keys[:, :-1], noisy[:, :-1], n_keys)  # [n, n_keys]
        keys[:, -1] = (rng.random((n, n_keys)) * (first < pairs)).argmax(1)
        answers = np.take_along_axis(values, keys, 1)
        asked = ~noisy & (np.take_along_axis(first, keys, 1) < np.arange(pairs))
        inputs = np.stack((keys, answers), 2)  # [n, pairs, 2]
        if self.noise:
            inputs = np.where(noisy[..., None], rng.integers(content, self.vocab_size, inputs.shape), inputs)
        labels = np.full_like(inputs, IGNORE)
        labels[..., 0] = np.where(asked, answers, IGNORE)
        return labelled_examples(inputs.reshape(n, -1), labels.reshape(n, -1), self.mad_compatible)


class NoisyRecall(MadRecall):
    """In-context recall among pairs of noise tokens."""

    kind: ClassVar[str] = "mad_noisy_recall"
    vocab_size: int = Field(default=32, gt=3, le=LONGEST)
    noise_vocab: int = Field(
        default=16, ge=0, le=LONGEST, description="the last ids of the vocabulary, for noise alone"
    )
    noise: float = Field(default=0.2, ge=0, lt=1, description="share of the pairs that are noise")


class FuzzyRecall(MadTask):
    """In-context recall of motifs: a key and a value are each 1 to `motif` different adjacent tokens.

    Motifs are written side by side until no further pair fits, then a key already shown is repeated with its value;
    the row is padded on the left. Of a repeated key's value every token is an answer. MAD trains on keys of 1 to 3
    tokens and tests on keys of 3: `min_key` is 1 in the training slice, and 3 by default.
    """

    kind: ClassVar[str] = "mad_fuzzy_recall"
    vocab_size: int = Field(default=16, gt=6, le=LONGEST)
    motif: int = Field(default=3, gt=0, le=WIDEST, description="longest motif")
    min_key: int = Field(default=3, gt=0, le=WIDEST, description="shortest motif of a key")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        n_keys, _ = self._sizes()
        if not self.min_key <= self.motif <= n_keys:
            raise ValueError(
                f"{self.kind}.motif: {self.motif} must lie between min_key={self.min_key} and the {n_keys} key tokens "
                f"of vocab_size={self.vocab_size}"
            )
        if self.length < 4 * self.motif:
            raise ValueError(f"{self.kind}.length: {self.length} holds no two pairs of motifs; use {4 * self.motif}")
        return self

    def _sizes(self) -> tuple[int, int]:
        """How many ids are keys and how many values; the last id of all is padding."""
        content = self.vocab_size - 1
        return content // 2, content - content // 2

    @property
    def label(self) -> str:
        return f"{self.kind} V{self.vocab_size} L{self.length}"

    def chance(self) -> float:
        return 1 / self._sizes()[1]

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        n_keys, n_values = self._sizes()
        shape = (n, self.length // (self.min_key + 1))  # the most pairs a row can hold
        keys = distinct(rng, n_keys, self.motif, shape).tolist()
        values = (n_keys + distinct(rng, n_values, self.motif, shape)).tolist()
        key_sizes = rng.integers(self.min_key, self.motif + 1, shape).tolist()
        value_sizes = rng.integers(1, self.motif + 1, shape).tolist()
        last = rng.random(n)
        inputs = np.full((n, self.length), self.vocab_size - 1)
        labels = np.full_like(inputs, IGNORE)
        for row in range(n):
            drawn = zip(keys[row], key_sizes[row], values[row], value_sizes[row], strict=True)
            tokens, asked = self._row([(tuple(k[:i]), v[:j]) for k, i, v, j in drawn], last[row])
            start = self.length - len(tokens)
            inputs[row, start:] = tokens
            for at in asked:
                labels[row, start + at - 1] = tokens[at]
        return labelled_examples(inputs, labels, self.mad_compatible)

    def _row(self, drawn: list[tuple[tuple[int, ...], list[int]]], last: float) -> tuple[list[int], list[int]]:
        """One row's tokens and the places of its answers; `last` in [0, 1) chooses the key that ends the row."""
        shown: dict[tuple[int, ...], list[int]] = {}
        tokens: list[int] = []
        asked: list[int] = []

        def write(key: tuple[int, ...], value: list[int]) -> None:
            start = len(tokens) + len(key)
            if key in shown:
                asked.extend(range(start, start + len(shown[key])))
            tokens.extend((*key, *shown.setdefault(key, value)))

        for key, value in drawn:
            if len(tokens) + len(key) + len(shown.get(key, value)) + 2 * self.motif > self.length:
                break
            write(key, value)
        key = list(shown)[int(last * len(shown))]
        write(key, shown[key])
        return tokens, asked


def _first_places(keys: np.ndarray, skip: np.ndarray, n_keys: int) -> np.ndarray:
    """At which pair each key is first shown: keys [n, P] -> [n, n_keys], P + 1 where it never is."""
    n, pairs = keys.shape
    first = np.full((n, n_keys), pairs + 1)
    for place in reversed(range(pairs)):
        rows = np.flatnonzero(~skip[:, place])
        first[rows, keys[rows, place]] = place
    return first
