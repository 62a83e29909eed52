import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from hybridlm.tools.ngram import KneserNey, yardsticks

V = 320


def document_trigrams(dataset) -> list[tuple[int, int, int]]:
    """Context and target, document by document."""
    found = []
    for start, stop in zip(dataset.doc_offsets[:-1], dataset.doc_offsets[1:], strict=True):
        tokens = dataset.tokens(start, stop).tolist()
        padded = [tokens[0], *tokens]
        found += [tuple(padded[i : i + 3]) for i in range(len(padded) - 2)]
    return found


class ByTheBook:
    """Interpolated Kneser-Ney with dictionaries, straight from its definition."""

    def __init__(self, trigrams, D=0.75):
        self.D = D
        self.c3 = Counter(trigrams)
        left = defaultdict(set)
        for a, b, w in trigrams:
            left[b, w].add(a)
        self.c2 = {pair: len(neighbours) for pair, neighbours in left.items()}
        self.c1 = Counter(w for _, w in self.c2)
        self.followers3, self.followers2 = defaultdict(Counter), defaultdict(Counter)
        for (a, b, w), n in self.c3.items():
            self.followers3[a, b][w] = n
        for (b, w), n in self.c2.items():
            self.followers2[b][w] = n

    def prob(self, a, b, w):
        p = (self.c1[w] + 0.1) / (sum(self.c1.values()) + 0.1 * V)
        for followers in (self.followers2.get(b), self.followers3.get((a, b))):
            if followers:
                total = sum(followers.values())
                p = max(followers[w] - self.D, 0) / total + self.D * len(followers) / total * p
        return p


@pytest.fixture
def packs(make_pack):
    return [make_pack("a", 40, 1), make_pack("b", 20, 2)], [make_pack("c", 15, 3)]


def test_every_yardstick_against_plain_counting(packs):
    train, valid = packs
    seen = [t for dataset in train for t in document_trigrams(dataset)]
    asked = [t for dataset in valid for t in document_trigrams(dataset)]
    assert len(asked) == valid[0].n_tokens - valid[0].n_documents
    model, counts = ByTheBook(seen), Counter(w for _, _, w in seen)
    nats = {
        "uniform": math.log(V),
        "unigram": -sum(math.log((counts[w] + 0.5) / (len(seen) + 0.5 * V)) for _, _, w in asked) / len(asked),
        "trigram": -sum(math.log(model.prob(*t)) for t in asked) / len(asked),
    }
    found = yardsticks(train, valid, V)
    assert set(found) == set(nats)
    for name, value in nats.items():
        assert found[name].nats_per_token == pytest.approx(value, rel=1e-12)
        bits = value * len(asked) / math.log(2) / valid[0].n_bytes
        assert found[name].bits_per_byte == pytest.approx(bits, rel=1e-12)
    assert found["trigram"].nats_per_token < found["unigram"].nats_per_token < found["uniform"].nats_per_token


def test_probabilities_sum_to_one_in_seen_and_unseen_contexts(packs):
    seen = np.array(document_trigrams(packs[0][0])).T
    model = KneserNey(seen, V)
    a, b, _ = seen[:, 10]
    words = np.arange(V)
    for context in ((a, b), (V - 1, b), (V - 1, V - 2), (seen[0, 0], seen[1, 0])):
        trigrams = np.stack([np.full(V, context[0]), np.full(V, context[1]), words])
        p = model.prob(trigrams)
        assert p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-12)


def test_a_vocabulary_beyond_63_bits_is_refused():
    with pytest.raises(ValueError, match="vocab_size=3000000"):
        KneserNey(np.zeros((3, 1), dtype=np.int64), 3_000_000)
