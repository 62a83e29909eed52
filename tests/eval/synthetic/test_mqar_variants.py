"""Recall with updates, with keys of two parts, and beyond a window, each against its definition."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.synthetic import parse
from hybridlm.eval.synthetic.mqar import MQAR, CompositionalMQAR, ForgettingMQAR
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.eval.synthetic.definitions import certain, rows, zoology_compositional, zoology_forgetting

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(K=st.integers(1, 10), U=st.integers(1, 10), spare=st.integers(0, 9), V=st.integers(44, 300), seed=seeds)
def test_the_last_value_of_a_key_is_the_answer(K, U, spare, V, seed):
    U = min(K, U)
    C = 2 * (K + U)
    task = ForgettingMQAR(vocab_size=V, length=C + 2 * K + 2 * spare, n_pairs=K, n_updates=U)
    for tokens, asked in rows(task.sample(5, seed)):
        keys, values = tokens[:C:2], tokens[1:C:2]
        assert len(set(keys[:K])) == K and len(set(keys[K:])) == U and set(keys[K:]) <= set(keys[:K])
        assert len(set(values)) == K + U and min(values) >= V // 2  # so a new value differs from every old one
        last = dict(zip(keys, values, strict=True))
        assert len(asked) == K and {tokens[i]: answer for i, answer in asked.items()} == last
        assert all(i >= C and i % 2 == 0 for i in asked)


def shown(task, n=4000, seed=1):
    """Zoology's quantities of ours: the pairs of each example as shown, and its answers by key."""
    C = task.context_length
    for tokens, asked in rows(task.sample(n, seed)):
        yield list(zip(tokens[:C:2], tokens[1:C:2], strict=True)), {tokens[i]: answer for i, answer in asked.items()}


def facts(examples, K):
    """Shares over examples: updates that repeat what they replace, value of pair j in update j, values twice."""
    pairs = [pairs for pairs, _ in examples]
    updates = [(dict(p[:K]), p[j][1], key, value) for p in pairs for j, (key, value) in enumerate(p[K:])]
    repeats = sum(first[key] == value for first, _, key, value in updates) / len(updates)
    same_place = sum(old == value for _, old, _, value in updates) / len(updates)
    twice = sum(len({value for _, value in p}) < len(p) for p in pairs) / len(pairs)
    return repeats, same_place, twice


def test_new_values_as_zoology_draws_them():
    V, K, U, n = 32, 5, 3, 4000
    task = ForgettingMQAR(vocab_size=V, length=40, n_pairs=K, n_updates=U, new_values="zoology")
    ours, rng = list(shown(task, n)), random.Random(0)
    assert all(answers == dict(pairs) for pairs, answers in ours)
    published = [zoology_forgetting(rng, V=V, K=K, U=U) for _ in range(n)]
    expected = (1 - 1 / K) / (V // 2 - 1)
    for found in (facts(ours, K), facts(published, K)):
        assert abs(found[0] - expected) < 4 * (expected / (n * U)) ** 0.5  # an update may repeat what it replaces
        assert found[1] == 0  # of update j the first value of pair j is left out
    twice = [facts(examples, K)[2] for examples in (ours, published)]
    assert abs(twice[0] - twice[1]) < 4 * (2 * 0.25 / n) ** 0.5 and min(twice) > 0.5
    counts = torch.tensor([value for pairs, _ in ours for _, value in pairs[K:]]).bincount(minlength=V)[V // 2 :]
    assert (counts - n * U / 16).abs().max() < 5 * (n * U / 16) ** 0.5
    assert facts(list(shown(task.model_copy(update={"new_values": "distinct"}))), K) == (0, 0, 0)


def test_keys_shown_again_count_as_updated_whatever_their_value():
    task = ForgettingMQAR(vocab_size=10, length=40, n_pairs=4, n_updates=2, new_values="zoology")  # values collide
    examples = task.sample(200, 0)
    logits = []
    for tokens, asked in rows(examples):
        again = set(tokens[8:12:2])
        logits += [answer if tokens[i] in again else 0 for i, answer in asked.items()]
    scores = task.scores(certain(logits, 10), examples)
    assert scores["updated"].min() == 1 and torch.allclose(scores["accuracy"], torch.tensor(0.5))


def test_the_choice_of_new_values_leaves_older_results_theirs():
    plain = ForgettingMQAR()
    assert "new_values" not in plain.identity()[1]
    assert ForgettingMQAR(new_values="zoology").identity()[1]["new_values"] == "zoology"
    assert plain.label == "mqar_forgetting L64 K8 U4"
    assert MQAR().identity() == ("mqar", MQAR().model_dump())
    assert CompositionalMQAR().identity()[0] == "mqar_compositional/2"  # its examples are others than they were


@pytest.mark.parametrize("V", [34, 35, 36])
def test_the_parts_of_a_key_and_the_values_are_of_disjoint_thirds_as_in_zoology(V):
    n, rng, third = 3000, random.Random(0), V // 3
    inputs = CompositionalMQAR(vocab_size=V, length=24, n_pairs=4).sample(n, 0).inputs[:, :12].reshape(n, 4, 3)
    published = torch.tensor([zoology_compositional(rng, V=V, K=4) for _ in range(n)])
    for part, (first, end) in enumerate(((1, third), (third, 2 * third), (2 * third, V))):
        for drawn in (inputs, published):
            counts = drawn[..., part].flatten().bincount(minlength=V)
            assert counts[:first].sum() == counts[end:].sum() == 0
            expected = 4 * n / (end - first)  # the draws of an example are dependent: twice the square root at most
            assert (counts[first:end] - expected).abs().max() < 5 * 2 * expected**0.5
    (chance,) = [anchor.value for anchor in CompositionalMQAR(vocab_size=V).anchors() if anchor.who == "chance"]
    assert chance == 1 / (V - 2 * third)


def test_who_keeps_the_first_value_is_right_where_nothing_changed_only():
    task = ForgettingMQAR(length=64, n_pairs=8, n_updates=3)
    examples = task.sample(50, 0)
    first = []
    for tokens, asked in rows(examples):
        memory = dict(zip(tokens[:16:2], tokens[1:16:2], strict=True))
        first += [memory[tokens[i]] for i in asked]
    scores = task.scores(certain(first, task.vocab_size), examples)
    assert torch.allclose(scores["accuracy"], torch.tensor(5 / 8)) and scores["updated"].max() == 0
    right = certain(examples.labels[examples.labelled].tolist(), task.vocab_size)
    assert all(score.min() == 1 for score in task.scores(right, examples).values())


def test_every_key_is_as_likely_to_be_updated():
    task = ForgettingMQAR(vocab_size=64, length=40, n_pairs=5, n_updates=2)
    inputs = task.sample(20_000, 0).inputs
    updated = (inputs[:, :10:2, None] == inputs[:, None, 10:14:2]).any(2).double().mean(0)
    assert (updated - 2 / 5).abs().max() < 4 * (0.24 / 20_000) ** 0.5


@settings(max_examples=30, deadline=None)
@given(side=st.integers(1, 4), spare=st.integers(0, 9), V=st.integers(48, 300), filled=st.booleans(), seed=seeds)
def test_both_keys_tell_the_answer_and_neither_alone(side, spare, V, filled, seed):
    K = side**2
    options = {"vocab_size": V, "n_pairs": K, "random_non_queries": filled}
    task = CompositionalMQAR(length=6 * K + 2 * spare + K % 2 * 2, **options)
    for tokens, asked in rows(task.sample(4, seed)):
        triplets = list(zip(tokens[: 3 * K : 3], tokens[1 : 3 * K : 3], tokens[2 : 3 * K : 3], strict=True))
        first, second = {a for a, _, _ in triplets}, {b for _, b, _ in triplets}
        assert len(first) == len(second) == side and not first & second
        assert {(a, b) for a, b, _ in triplets} == {(a, b) for a in first for b in second}
        assert len({value for *_, value in triplets}) == K  # so each key stands with `side` different values
        memory = {(a, b): value for a, b, value in triplets}
        assert len(asked) == K and all(memory[tokens[i - 1], tokens[i]] == answer for i, answer in asked.items())
        assert sorted((tokens[i - 1], tokens[i]) for i in asked) == sorted(memory)
        if not filled:
            queries = {i - j for i in asked for j in (0, 1)}
            assert all(token == 0 for i, token in enumerate(tokens) if i >= 3 * K and i not in queries)


def test_triplets_come_in_random_order():
    inputs = CompositionalMQAR(length=36, n_pairs=4).sample(4000, 0).inputs
    assert abs((inputs[:, 0] == inputs[:, 3]).double().mean() - 1 / 3) < 0.03  # of three others one shares the key


def test_a_window_shorter_than_the_distance_never_holds_the_answer():
    task = MQAR(length=96, n_pairs=6, min_distance=33, random_non_queries=False)
    nearest = []
    for tokens, asked in rows(task.sample(300, 0)):
        assert all(answer not in tokens[i - 32 : i + 1] for i, answer in asked.items())
        nearest += [i - tokens.index(answer) for i, answer in asked.items()]
    assert min(nearest) == 33  # and no further away than asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "mqar_forgetting", "n_updates": 9}, "n_updates: 9 exceeds n_pairs=8"),
        ({"task": "mqar_forgetting", "n_pairs": 16}, "length: 64 is too short for n_pairs=16.*40.*32.*at least 72"),
        ({"task": "mqar_forgetting", "vocab_size": 20}, "has 9 keys and 10 values.*needs 8 and 12; use at least 23"),
        ({"task": "mqar_compositional", "n_pairs": 8}, "n_pairs: 8 is no square; use 4 or 9"),
        (
            {"task": "mqar_compositional", "vocab_size": 8},
            "has 1 first keys, 2 second keys and 4 values.*needs 3, 3 and 9; use at least 25",
        ),
        ({"task": "mqar_forgetting", "new_values": "any"}, "new_values.*'distinct' or 'zoology'"),
        ({"task": "mqar_compositional", "n_pairs": 16}, "too short for n_pairs=16.*use at least 96"),
        ({"task": "mqar_forgeting"}, "unknown task 'mqar_forgeting'; did you mean 'mqar_forgetting'"),
        ({"length": 64}, "unknown task None"),
    ],
)
def test_impossible_options_are_one_clear_error(options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        parse(options)
    assert len(str(raised.value).splitlines()) == 1
