"""The six token-manipulation tasks of MAD (Poli et al. 2024, arXiv 2403.17844, sec. 3), with its defects fixed.

Here are three of them and what the six share; `mad_recall` has the three of recall in context. Tokens are numbered
content first, special tokens last. A label stands on the position that has to give the answer.

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
from ...lm.parts.ranges import LONGEST, MOST, WIDEST
from .drawing import generator
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

    length: int = Field(default=128, gt=3, le=LONGEST)
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


class SelectiveCopy(MadTask):
    """`n_copied` content tokens among blanks, a marker, then `n_copied` blanks, which ask for the content in order."""

    kind: ClassVar[str] = "mad_copy"
    vocab_size: int = Field(default=16, gt=3, le=LONGEST)
    length: int = Field(default=256, gt=3, le=LONGEST)
    n_copied: int = Field(default=16, gt=0, le=WIDEST)

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
        return labelled_examples(inputs, labels)


class Memorization(MadTask):
    """Pairs of a key and an insert marker, which asks for the key's value. The map is the same in every example.

    It depends on `map_seed` alone: what is tested is what the weights have learnt, nothing in the context tells.
    """

    kind: ClassVar[str] = "mad_memorization"
    vocab_size: int = Field(default=256, gt=4, le=LONGEST)
    length: int = Field(default=32, gt=1, le=LONGEST)
    map_seed: int = Field(default=12345, ge=0, le=MOST)

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
        return labelled_examples(inputs.reshape(n, -1), labels.reshape(n, -1))


class Compression(MadTask):
    """A random string and a marker, on whose vector alone a decoder has to reconstruct the whole string.

    With `noise`, that share of the tokens is of a vocabulary of its own and not asked for.
    """

    kind: ClassVar[str] = "mad_compression"
    vocab_size: int = Field(default=16, gt=2, le=LONGEST)
    length: int = Field(default=32, gt=1, le=LONGEST)
    noise_vocab: int = Field(default=0, ge=0, le=LONGEST, description="the last ids before the marker, for noise alone")
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
        return labelled_examples(inputs, inputs.copy() if self.mad_compatible else labels)

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


def labelled_examples(inputs: np.ndarray, labels: np.ndarray, next_tokens: bool = False) -> Examples:
    """As tensors; with `next_tokens`, every position's label is the token after it."""
    if next_tokens:
        labels = np.full_like(inputs, IGNORE)
        labels[:, :-1] = inputs[:, 1:]
    return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))
