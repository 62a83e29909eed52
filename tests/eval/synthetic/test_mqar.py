"""MQAR against its definition (Zoology, arXiv 2312.04927), against closed forms, and against wrong sizes."""

import hashlib
import random
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.synthetic import parse
from hybridlm.eval.synthetic.mqar import MQAR
from hybridlm.eval.synthetic.slots import draw_slots, slot_weights
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.eval.synthetic.definitions import certain, check_mqar, draw_mqar, inclusion, rows


def digest(examples) -> str:
    return hashlib.sha256(b"".join(x.numpy().astype("<i8").tobytes() for x in examples)).hexdigest()[:16]


@settings(max_examples=40, deadline=None)
@given(
    K=st.integers(1, 12),
    passes=st.integers(1, 3),
    spare=st.integers(0, 20),
    V=st.integers(30, 600),
    a=st.sampled_from([0.01, 0.5, 1.0, 2.0]),
    filled=st.booleans(),
    distance=st.integers(0, 30),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_example_is_what_the_definition_says(K, passes, spare, V, a, filled, distance, seed):
    gap = distance // 2 * 2
    task = MQAR(
        vocab_size=V,
        length=2 * K * passes + gap + 2 * K + 2 * spare,
        n_pairs=K,
        power_a=a,
        num_passes=passes,
        random_non_queries=filled,
        min_distance=distance,
    )
    examples = task.sample(5, seed)
    assert examples.inputs.dtype == examples.labels.dtype == torch.int64
    for tokens, asked in rows(examples):
        check_mqar(tokens, asked, V=V, K=K, passes=passes, blank=not filled, gap=gap)
        shown = {tokens[i]: i + 1 for i in range(0, 2 * K * passes, 2)}  # where each key's value was last shown
        assert all(i - shown[tokens[i]] >= distance for i in asked)


def test_the_plain_reading_of_the_definition_passes_its_own_check_and_has_the_same_slots():
    rng, n = random.Random(0), 3000
    sizes = {"V": 64, "K": 3}
    plain = [draw_mqar(rng, L=24, a=0.01, **sizes) for _ in range(n)]
    ours = list(rows(MQAR(vocab_size=64, length=24, n_pairs=3).sample(n, 1)))
    for tokens, asked in plain[:200] + ours[:200]:
        check_mqar(tokens, asked, **sizes)
    for place in range(6, 24, 2):
        shares = [np.mean([place in asked for _, asked in drawn]) for drawn in (plain, ours)]
        assert abs(shares[0] - shares[1]) < 4 * np.sqrt(0.5 * 0.5 * 2 / n)


@pytest.mark.parametrize("a", [0.01, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_slots_have_the_inclusion_probabilities_of_the_closed_form(a, size):
    n = 40_000
    drawn = draw_slots(np.random.default_rng(3), slot_weights(6, a), n, size)
    assert all(len(set(row)) == size for row in drawn[:500].tolist())
    weights = [(i + 1) ** (a - 1) for i in range(6)]
    for i, p in enumerate(inclusion(weights, size)):
        assert abs((drawn == i).any(1).mean() - p) < 4 * np.sqrt(p * (1 - p) / n) + 1e-9
    first = np.bincount(drawn[:, 0], minlength=6) / n  # pair 0 takes the slot drawn first
    assert np.abs(first - np.array(weights) / sum(weights)).max() < 4 * np.sqrt(0.25 / n)


def test_power_a_of_one_makes_every_slot_as_likely():
    n = 20_000
    labelled = MQAR(vocab_size=64, length=40, n_pairs=4, power_a=1.0).sample(n, 0).labelled
    shares = labelled[:, 8::2].double().mean(0)
    assert (shares - 4 / 16).abs().max() < 4 * np.sqrt(0.25 * 0.75 / n)


def test_slots_fill_as_in_zoology_at_the_published_size():
    n = 4000  # what its generator gave over as many examples, at V=128, L=64, K=4
    labelled = MQAR(vocab_size=128, length=64, n_pairs=4).sample(n, 0).labelled
    for slot, share in enumerate((0.72, 0.47, 0.37, 0.29)):
        error = np.sqrt(2 * share * (1 - share) / n)  # both are samples
        assert abs(labelled[:, 8 + 2 * slot].double().mean().item() - share) < 3 * error + 0.005


def test_at_four_tokens_a_pair_every_slot_is_a_query():
    labelled = MQAR(length=64, n_pairs=16).sample(50, 0).labelled
    assert labelled[:, 32::2].all() and labelled.sum() == 50 * 16


def test_fillers_are_uniform_and_may_be_any_id():
    task = MQAR(vocab_size=16, length=64, n_pairs=2)
    examples = task.sample(4000, 0)
    fillers = examples.inputs[:, 4:][~examples.labelled[:, 4:]]
    counts = fillers.bincount(minlength=16)
    expected = len(fillers) / 16
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_keys_and_values_are_uniform_in_every_place_and_independent():
    context = MQAR(vocab_size=12, length=16, n_pairs=3).sample(30_000, 0).inputs[:, :6]
    for place in range(6):
        ids, low = (5, 1) if place % 2 == 0 else (6, 6)
        counts = (context[:, place] - low).bincount(minlength=ids)
        assert (counts - 30_000 / ids).abs().max() < 5 * (30_000 / ids) ** 0.5
    both = ((context[:, 0] - 1) * 6 + context[:, 1] - 6).bincount(minlength=30)
    assert (both - 1000).abs().max() < 5 * 1000**0.5


def test_bytes_depend_on_options_and_seed_alone():
    recorded = {
        ("mqar", 0): "92634d2a7a4ffdea",
        ("mqar", 2**40): "bca4605a3fbe9dc6",
        ("mqar_forgetting", 0): "ff4b5f74e510eb19",
        ("mqar_compositional", 0): "63d4914ecc7fe9d2",
    }
    for (name, seed), expected in recorded.items():
        torch.manual_seed(seed % 7)
        np.random.seed(seed % 5)
        before = torch.get_rng_state()
        assert digest(parse({"task": name, "length": 96, "n_pairs": 9}).sample(100, seed)) == expected
        assert torch.equal(before, torch.get_rng_state())


def test_weights_are_integers_that_follow_the_power_law():
    weights = np.array(slot_weights(2000, 0.01), dtype=float)
    assert weights[0] == 2**32
    np.testing.assert_allclose(weights, 2**32 * np.arange(1, 2001) ** -0.99, rtol=1e-5)


def test_memory_stays_near_that_of_the_result():
    task = MQAR(vocab_size=8192)
    task.sample(10, 0)
    tracemalloc.start()
    examples = task.sample(20_000, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * sum(x.nbytes for x in examples)  # a table of all keys for each example would take 655 MB


def test_a_dictionary_solves_it_and_guessing_is_at_chance():
    task = MQAR(vocab_size=64, length=64, n_pairs=8)
    examples = task.sample(2000, 0)
    looked_up = []
    for tokens, asked in rows(examples):
        memory = dict(zip(tokens[:16:2], tokens[1:16:2], strict=True))
        looked_up += [memory[tokens[i]] for i in asked]
    scores = task.scores(certain(looked_up, 64), examples)
    assert scores["accuracy"].shape == (2000,) and scores["accuracy"].min() == scores["exact"].min() == 1
    guesses = torch.randint(32, 64, (16_000,), generator=torch.Generator().manual_seed(0)).tolist()
    scores = task.scores(certain(guesses, 64), examples)
    (chance,) = [anchor.value for anchor in task.anchors() if anchor.who == "chance"]
    assert chance == 1 / 32
    assert abs(scores["accuracy"].mean() - chance) < 4 * (chance * (1 - chance) / 16_000) ** 0.5
    assert scores["exact"].max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 28}, "mqar.length: 28 is too short for n_pairs=8.*use at least 32"),
        ({"length": 64, "min_distance": 40}, "mqar.length: 64 is too short.*use at least 72"),
        ({"length": 64, "num_passes": 4}, "use at least 80"),
        ({"length": 65}, "mqar.length: 65 is odd; use 66"),
        ({"vocab_size": 16}, "mqar.vocab_size: 16 has 7 keys and 8 values, n_pairs=8 needs 8 and 8; use at least 18"),
        ({"n_pairs": 0}, "n_pairs.*greater than 0"),
        ({"power_a": 0.0}, "power_a.*greater than 0"),
        ({"n_pair": 8}, "unknown key 'n_pair'.*did you mean 'n_pairs'"),
    ],
)
def test_impossible_sizes_are_one_clear_error(options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        parse({"task": "mqar", **options})
    assert len(str(raised.value).splitlines()) == 1


def test_the_least_vocabulary_named_by_the_error_is_enough():
    parse({"task": "mqar", "vocab_size": 18, "n_pairs": 8}).sample(3, 0)


def test_published_figures_stand_with_their_slices():
    figures = {anchor.who: anchor.value for anchor in MQAR(length=256, n_pairs=16).anchors()}
    assert figures["hyena d512"] == 0.69 and figures["attention d64"] == 1
    means = [a for a in MQAR(length=1024, n_pairs=256).anchors() if a.metric == "accuracy, mean of 7 slices"]
    assert {a.who: a.value for a in means}["gated_deltanet, 17,000 bytes of state"] == 0.89
    assert len(MQAR(length=64, n_pairs=5).anchors()) == 1
