"""What a loss means: uniform, unigram and Kneser-Ney trigram models fitted on the tokens that the model trains on.

Interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, section 3) with one discount D:

    p(w | a b) = max(c(a b w) - D, 0) / c(a b) + D n(a b) / c(a b) * p(w | b)

where n(a b) is the number of different words seen after a b. p(w | b) has the same form with the number of different
words that precede b w in place of its count, and p(w) counts the different words that precede w. A context that was
never seen leaves all to the next lower order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..lm.data.packed import PackedDataset

DISCOUNT = 0.75
UNIGRAM_ADD = 0.5
WORD_ADD = 0.1  # keeps p(w) of the lowest order positive for words never seen


@dataclass(frozen=True)
class Yardstick:
    """A loss over the targets that training validates on: every token but each document's first one."""

    nats_per_token: float
    bits_per_byte: float


def yardsticks(train: Sequence[PackedDataset], valid: Sequence[PackedDataset], vocab_size: int) -> dict[str, Yardstick]:
    """The losses of `uniform`, `unigram` (add 0.5) and `trigram` (Kneser-Ney, D = 0.75) on `valid`, fitted on `train`.

    bits_per_byte divides by the UTF-8 bytes of the validation documents' text. Raises ValueError when vocab_size^3 does
    not fit 63 bits.
    """
    seen, asked = _trigrams(train), _trigrams(valid)
    n_bytes = sum(dataset.n_bytes for dataset in valid)
    counts = np.bincount(seen[2], minlength=vocab_size) + UNIGRAM_ADD
    losses = {
        "uniform": math.log(vocab_size) * len(asked[2]),
        "unigram": -np.log(counts[asked[2]] / counts.sum()).sum(),
        "trigram": -np.log(KneserNey(seen, vocab_size).prob(asked)).sum(),
    }
    return {
        name: Yardstick(float(nats) / len(asked[2]), float(nats) / math.log(2) / n_bytes)
        for name, nats in losses.items()
    }


class KneserNey:
    """The trigram model of `trigrams` [3, n]: each target with the two tokens before it."""

    def __init__(self, trigrams: np.ndarray, vocab_size: int):
        if vocab_size**3 >= 1 << 63:
            raise ValueError(f"vocab_size={vocab_size}: trigrams of more than 2097151 tokens do not fit 63 bits")
        self.V = vocab_size
        keys, counts = np.unique(self._key(*trigrams), return_counts=True)
        self.trigram = _Order(keys, counts, vocab_size)
        # a b w that was seen at all counts once for b w: only different left neighbours matter
        pairs, left_neighbours = np.unique(keys % vocab_size**2, return_counts=True)
        self.bigram = _Order(pairs, left_neighbours, vocab_size)
        words = np.bincount(pairs % vocab_size, minlength=vocab_size) + WORD_ADD
        self.word = words / words.sum()

    def prob(self, trigrams: np.ndarray) -> np.ndarray:
        """p(w | a b) of trigrams (a, b, w) [3, n] -> [n]."""
        a, b, w = trigrams
        return self.trigram.prob(self._key(a, b, w), self.bigram.prob(self._key(0, b, w), self.word[w]))

    def _key(self, a: np.ndarray | int, b: np.ndarray, w: np.ndarray) -> np.ndarray:
        return (a * self.V + b) * self.V + w


class _Order:
    """One order: sorted keys context * V + word with their counts, and per context the sum and number of words."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.V, self.keys, self.counts = vocab_size, keys, counts
        self.contexts, first = np.unique(keys // vocab_size, return_index=True)
        self.total = np.add.reduceat(counts, first)
        self.types = np.diff(first, append=len(keys))

    def prob(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Discounted relative frequency plus what the discount leaves times `lower`; `lower` in unseen contexts."""
        contexts = keys // self.V
        total = np.maximum(_lookup(self.contexts, self.total, contexts), 1)  # 1 is never used: `seen` is False there
        types = _lookup(self.contexts, self.types, contexts)
        seen = types > 0
        count = _lookup(self.keys, self.counts, keys)
        return np.where(seen, (np.maximum(count - DISCOUNT, 0) + DISCOUNT * types * lower) / total, lower)


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] == wanted, else 0; `keys` is sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _trigrams(datasets: Sequence[PackedDataset]) -> np.ndarray:
    """(a, b, w) of every target, [3, n]; a document's first context is its first token twice."""
    return np.concatenate([_trigrams_of(dataset) for dataset in datasets], axis=1)


def _trigrams_of(dataset: PackedDataset) -> np.ndarray:
    tokens = dataset.tokens(0, dataset.n_tokens)
    is_first = np.zeros(len(tokens), dtype=bool)
    is_first[dataset.doc_offsets[:-1]] = True
    target = np.flatnonzero(~is_first)  # never position 0
    before = target - 1
    return np.stack([tokens[np.where(is_first[before], before, before - 1)], tokens[before], tokens[target]])
