import numpy as np
import pytest

from hybridlm.lm.data.mixture import BLOCK, Mixture


def test_every_row_once_per_epoch_in_a_new_order():
    mixture = Mixture([37], [1.0], seed=0)
    epochs = [[mixture[n] for n in range(37 * e, 37 * (e + 1))] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, row) for row in range(37)]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.9993, 0.0004, 0.0003], [1 / 3] * 3])
def test_shares_are_exact_to_one_row_at_every_block(weights):
    mixture = Mixture([1000] * len(weights), weights, seed=1)
    counts = np.zeros(len(weights))
    for block in range(40):
        for n in range(block * BLOCK, (block + 1) * BLOCK):
            counts[mixture[n][0]] += 1
        assert np.abs(counts - np.array(weights) * BLOCK * (block + 1)).max() <= 1


def test_each_source_goes_through_its_own_epochs():
    mixture = Mixture([10, 1500], [0.3, 0.7], seed=2)
    seen = {0: [], 1: []}
    for n in range(3 * BLOCK):
        source, row = mixture[n]
        seen[source].append(row)
    for source, rows in ((0, 10), (1, 1500)):
        for start in range(0, len(seen[source]) - rows, rows):
            assert sorted(seen[source][start : start + rows]) == list(range(rows))


def test_sequence_n_depends_on_nothing_asked_before():
    forward = Mixture([50, 70], [0.4, 0.6], seed=3)
    order = [forward[n] for n in range(4000)]
    jumping = Mixture([50, 70], [0.4, 0.6], seed=3)
    for n in np.random.default_rng(0).integers(0, 4000, 500):
        assert jumping[int(n)] == order[n]
    assert [Mixture([50, 70], [0.4, 0.6], seed=4)[n] for n in range(100)] != order[:100]


def test_sources_are_mixed_within_a_block():
    sources = [Mixture([500, 500], [0.5, 0.5], seed=5)[n][0] for n in range(200)]
    assert 60 < sum(sources) < 140
