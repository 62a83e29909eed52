"""The six token-manipulation tasks of MAD (Poli et al. 2024, arXiv 2403.17844, sec. 3), with its defects fixed.

Tokens are numbered content first, special tokens last. A label stands on the position that has to give the answer.
What the published generators do otherwise, and `mad_compatible` brings back: recall tasks train on every next token
rather than on the answers, blanks of selective copying stand before content only, so that the last content token
always touches the marker, and compression also asks for its noise and its constant marker. Not brought back: a fuzzy
probe whose key was never shown, global random numbers, and accuracy averaged over classes rather than over answers.
"""

import math
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...lm.model.loss import IGNORE
from ...lm.parts.norm import RMSNorm
from .drawing import distinct, generator
from .task import Anchor, Examples, Task

COLUMNS = ("mad_compression", "mad_fuzzy_recall", "mad_recall", "mad_memorization", "mad_noisy_recall", "mad_copy")
PUBLISHED = {  # percent, columns as above
    "Transformer": (51.6, 29.8, 94.1, 85.2, 86.8, 99.6),
    "Mamba": (52.7, 6.7, 90.4, 89.5, 90.1, 86.3),
    "GLA": (38.8, 6.9, 80.8, 63.3, 81.6, 88.6),
    "DeltaNet": (42.2, 35.7, 100.0, 52.8, 100.0, 100.0),
    "RWKV-7": (44.5, 43.2, 100.0, 89.1, 100.0, 98.8),
}
SOURCES = {"RWKV-7": "arXiv 2503.14456 (as quoted elsewhere), mean over difficulties"}
EPS = 1e-6
SOURCE = "arXiv 2406.06484 Fig. 3, mean over difficulties"


class MadTask(Task):
    """What the six have in common."""

    length: int = Field(default=128, gt=3)
    mad_compatible: bool = False
    """Draw and label as the published generators do; for a recall task that is for training slices alone."""

    def chance(self) -> float:
        """Accuracy of guessing among the ids that can be an answer."""
        raise NotImplementedError

    def anchors(self) -> list[Anchor]:
        """Published accuracies (d_model 128, 4 layers, best of six settings, averaged over difficulties) and chance."""
        column = COLUMNS.index(self.kind)
        published = [
            Anchor(who, "accuracy", row[column] / 100, SOURCES.get(who, SOURCE)) for who, row in PUBLISHED.items()
        ]
        return [Anchor("chance", "accuracy", self.chance(), "closed form"), *published]


class Recall(MadTask):
    """In-context recall: pairs k v k v ..., drawn with replacement; from its second time on, a key asks for its value.

    Keys are the ids below half of the content, values the rest of it; each example has a map of its own. The last pair
    always repeats a key. With `noise`, that share of the pairs is two tokens of a vocabulary of their own instead.
    """

    kind: ClassVar[str] = "mad_recall"
    vocab_size: int = Field(default=16, gt=3)
    noise_vocab: int = Field(default=0, ge=0, description="the last ids of the vocabulary, for noise alone")
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
        return _examples(inputs.reshape(n, -1), labels.reshape(n, -1), self.mad_compatible)


class NoisyRecall(Recall):
    """In-context recall among pairs of noise tokens."""

    kind: ClassVar[str] = "mad_noisy_recall"
    vocab_size: int = Field(default=32, gt=3)
    noise_vocab: int = Field(default=16, ge=0, description="the last ids of the vocabulary, for noise alone")
    noise: float = Field(default=0.2, ge=0, lt=1, description="share of the pairs that are noise")


class FuzzyRecall(MadTask):
    """In-context recall of motifs: a key and a value are each 1 to `motif` different adjacent tokens.

    Motifs are written side by side until no further pair fits, then a key already shown is repeated with its value;
    the row is padded on the left. Of a repeated key's value every token is an answer. MAD trains on keys of 1 to 3
    tokens and tests on keys of 3: `min_key` is 1 in the training slice, and 3 by default.
    """

    kind: ClassVar[str] = "mad_fuzzy_recall"
    vocab_size: int = Field(default=16, gt=6)
    motif: int = Field(default=3, gt=0, description="longest motif")
    min_key: int = Field(default=3, gt=0, description="shortest motif of a key")

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
        return _examples(inputs, labels, self.mad_compatible)

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


class SelectiveCopy(MadTask):
    """`n_copied` content tokens among blanks, a marker, then `n_copied` blanks, which ask for the content in order."""

    kind: ClassVar[str] = "mad_copy"
    vocab_size: int = Field(default=16, gt=3)
    length: int = Field(default=256, gt=3)
    n_copied: int = Field(default=16, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.length < 2 * self.n_copied + 2:
            raise ValueError(
                f"{self.kind}.length: {self.length} is too short for n_copied={self.n_copied}; use at least "
                f"{2 * self.n_copied + 2}"
            )
        return self

    @property
    def label(self) -> str:
        return f"{self.kind} V{self.vocab_size} L{self.length} n{self.n_copied}"

    def chance(self) -> float:
        return 1 / (self.vocab_size - 2)

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        copied, slots = self.n_copied, self.length - self.n_copied - 1
        marker, blank = self.vocab_size - 1, self.vocab_size - 2
        content = rng.integers(0, blank, (n, copied))
        if self.mad_compatible:  # each blank goes before a content token drawn uniformly, so none goes to the end
            before = np.sort(rng.integers(0, copied, (n, slots - copied)), 1)
            places = np.stack([np.searchsorted(row, np.arange(copied), side="right") for row in before])
            places += np.arange(copied)
        else:
            places = np.sort(rng.random((n, slots)).argsort(1, kind="stable")[:, :copied], 1)
        inputs = np.full((n, self.length), blank)
        np.put_along_axis(inputs, places, content, 1)
        inputs[:, slots] = marker
        labels = np.full_like(inputs, IGNORE)
        labels[:, slots + 1 :] = content
        return _examples(inputs, labels)


class Memorization(MadTask):
    """Pairs of a key and an insert marker, which asks for the key's value. The map is the same in every example.

    It depends on `map_seed` alone: what is tested is what the weights have learnt, nothing in the context tells.
    """

    kind: ClassVar[str] = "mad_memorization"
    vocab_size: int = Field(default=256, gt=4)
    length: int = Field(default=32, gt=1)
    map_seed: int = Field(default=12345, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.length % 2:
            raise ValueError(
                f"{self.kind}.length: {self.length} is odd, the sequence is made of pairs; use an even one"
            )
        return self

    @property
    def label(self) -> str:
        return f"{self.kind} V{self.vocab_size} L{self.length}"

    def chance(self) -> float:
        return 1 / self.values().size

    def values(self) -> np.ndarray:
        """The value of each key: a permutation of the upper half of the content, as long as the lower half."""
        content = self.vocab_size - 1
        n_keys = content // 2
        return n_keys + generator(self.kind, self.map_seed, "map").permutation(content - n_keys)[:n_keys]

    def sample(self, n: int, seed: int) -> Examples:
        values = self.values()
        keys = generator(self.kind, seed).integers(0, len(values), (n, self.length // 2))
        inputs = np.stack((keys, np.full_like(keys, self.vocab_size - 1)), 2)
        labels = np.stack((np.full_like(keys, IGNORE), values[keys]), 2)
        return _examples(inputs.reshape(n, -1), labels.reshape(n, -1))


class Compression(MadTask):
    """A random string and a marker, on whose vector alone a decoder has to reconstruct the whole string.

    With `noise`, that share of the tokens is of a vocabulary of its own and not asked for.
    """

    kind: ClassVar[str] = "mad_compression"
    vocab_size: int = Field(default=16, gt=2)
    length: int = Field(default=32, gt=1)
    noise_vocab: int = Field(default=0, ge=0, description="the last ids before the marker, for noise alone")
    noise: float = Field(default=0.0, ge=0, lt=1, description="share of the tokens that are noise")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.noise and not self.noise_vocab:
            raise ValueError(f"{self.kind}.noise_vocab: 0, but noise={self.noise:g} needs tokens; use 16, for example")
        if self.vocab_size - 1 - self.noise_vocab < 2:
            raise ValueError(
                f"{self.kind}.vocab_size: {self.vocab_size} leaves less than two content tokens beside the marker and "
                f"noise_vocab={self.noise_vocab}; use at least {self.noise_vocab + 3}"
            )
        return self

    @property
    def label(self) -> str:
        return f"{self.kind} V{self.vocab_size} L{self.length}" + (f" noise {self.noise:g}" if self.noise else "")

    def chance(self) -> float:
        return 1 / (self.vocab_size - 1 - self.noise_vocab)

    def sample(self, n: int, seed: int) -> Examples:
        rng = generator(self.kind, seed)
        marker = self.vocab_size - 1
        content = marker - self.noise_vocab
        inputs = rng.integers(0, content, (n, self.length))
        inputs[:, -1] = marker
        labels = np.where(inputs == marker, IGNORE, inputs)
        if self.noise:
            noisy = rng.random((n, self.length)) < self.noise
            noisy[:, -1] = False
            inputs = np.where(noisy, rng.integers(content, marker, inputs.shape), inputs)
            labels = np.where(noisy, IGNORE, labels)
        return _examples(inputs, inputs.copy() if self.mad_compatible else labels)

    def readout(self, d_model: int) -> nn.Module:
        """[n, L, d_model] -> logits [n, L, vocab_size], all from the last vector."""
        return LastVectorDecoder(d_model, self.vocab_size)


class LastVectorDecoder(nn.Module):
    """logits_t = W norm(MLP(h_last + p_t)): an MLP as wide as the model, p_t the sine and cosine code of t.

    MAD's decoder: two hidden layers, each a linear map of a normalised vector and a GELU.
    """

    def __init__(self, d_model: int, vocab_size: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(RMSNorm(d_model, EPS), nn.Linear(d_model, d_model), nn.GELU()) for _ in range(2)),
            RMSNorm(d_model, EPS),
            nn.Linear(d_model, vocab_size),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        length, width = hidden.shape[1:]
        return self.layers(hidden[:, -1:] + sinusoids(length, width, hidden))


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """[length, width]: sines, then cosines, of t 10000^(-i / (width/2)) (Vaswani et al. 2017, sec. 3.5)."""
    half = width - width // 2
    t = torch.arange(length, device=like.device)[:, None]
    angles = t * torch.exp(torch.arange(half, device=like.device) * (-math.log(10000) / half))
    return torch.cat((angles.sin(), angles.cos()), 1)[:, :width].to(like.dtype)


def _first_places(keys: np.ndarray, skip: np.ndarray, n_keys: int) -> np.ndarray:
    """At which pair each key is first shown: keys [n, P] -> [n, n_keys], P + 1 where it never is."""
    n, pairs = keys.shape
    first = np.full((n, n_keys), pairs + 1)
    for place in reversed(range(pairs)):
        rows = np.flatnonzero(~skip[:, place])
        first[rows, keys[rows, place]] = place
    return first


def _examples(inputs: np.ndarray, labels: np.ndarray, next_tokens: bool = False) -> Examples:
    """As tensors; with `next_tokens`, every position's label is the token after it."""
    if next_tokens:
        labels = np.full_like(inputs, IGNORE)
        labels[:, :-1] = inputs[:, 1:]
    return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))
