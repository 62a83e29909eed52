"""Parity and word problems: tables against the group laws, labels against a walk through each word."""

from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.synthetic.state_tracking import PAD, GroupWords, Parity, multiplication_table
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.eval.synthetic.checks import check_chance, check_fresh_process, check_solved

ORDERS = {"Z2": 2, "S3": 6, "S4": 24, "S5": 120, "A5": 60, "Z60": 60, "A4xZ5": 60}
CLASSES = {"Z2": 2, "S3": 3, "S4": 5, "S5": 7, "A5": 5, "Z60": 60, "A4xZ5": 20}  # conjugacy classes: books on groups


def inverse(table, a: int) -> int:
    return table[a].tolist().index(0)


def commutators(table, members: list[int]) -> list[int]:
    """The subgroup that the commutators of `members` generate."""
    found = {0} | {
        table[table[inverse(table, a), inverse(table, b)], table[a, b]] for a, b in product(members, members)
    }
    while True:
        more = found | {table[a, b] for a, b in product(found, found)}
        if more == found:
            return sorted(found)
        found = more


@pytest.mark.parametrize("group", ORDERS)
def test_table_is_a_group_of_that_name(group):
    table = multiplication_table(group)
    order = ORDERS[group]
    assert table.shape == (order, order)
    assert (table[0] == range(order)).all() and (table[:, 0] == range(order)).all()
    assert all(sorted(row) == list(range(order)) for row in (*table.tolist(), *table.T.tolist()))
    some = range(0, order, max(1, order // 12))
    assert all(table[table[a, b], c] == table[a, table[b, c]] for a, b, c in product(some, some, some))
    classes = {frozenset(table[table[inverse(table, g), x], g] for g in range(order)) for x in range(order)}
    assert len(classes) == CLASSES[group]


@pytest.mark.parametrize(("group", "series"), [("S3", [3, 1]), ("S4", [12, 4, 1]), ("S5", [60, 60]), ("A5", [60])])
def test_derived_series_tells_which_groups_are_solvable(group, series):
    table = multiplication_table(group)
    members, sizes = list(range(len(table))), []
    for _ in series:
        members = commutators(table, members)
        sizes.append(len(members))
    assert sizes == series


@pytest.mark.parametrize(("group", "n", "even"), [("S3", 3, False), ("S5", 5, False), ("A5", 5, True)])
def test_running_product_moves_things_about(group, n, even):
    """Carry n things along, each permutation applied to the ones before it."""
    elements = [p for p in permutations(range(n)) if not even or _even(p)]
    words, labels = GroupWords(group=group, length=20).sample(50, 1)
    for word, label in zip(words.tolist(), labels.tolist(), strict=True):
        where = list(range(n))
        for letter, product_so_far in zip(word, label, strict=True):
            where = [elements[letter][x] for x in where]
            assert elements[product_so_far] == tuple(where)


def _even(p) -> bool:
    """By the number of cycles: a permutation is even when n minus that number is."""
    seen, cycles = set(), 0
    for start in range(len(p)):
        cycles += start not in seen
        while start not in seen:
            seen.add(start)
            start = p[start]
    return (len(p) - cycles) % 2 == 0


def test_letters_are_uniform_and_so_are_answers():
    words, labels = GroupWords(group="S3", length=10).sample(6000, 0)
    for column in (words[:, 3], labels[:, 9]):
        counts = column.bincount(minlength=6)
        assert (counts - 1000).abs().max() < 5 * (1000 * 5 / 6) ** 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_parity_counts_ones(a, b, cumulative, seed):
    task = Parity(min_length=min(a, b), length=max(a, b), cumulative=cumulative)
    bits, labels = task.sample(20, seed)
    for row, label in zip(bits.tolist(), labels.tolist(), strict=True):
        string = row[: row.index(PAD)] if PAD in row else row
        assert task.min_length <= len(string) <= task.length and set(row[len(string) :]) <= {PAD}
        sums = [string[: i + 1].count(1) % 2 for i in range(len(string))]
        due = sums if cumulative else [-100] * (len(string) - 1) + sums[-1:]
        assert label == due + [-100] * (task.length - len(string))


def test_parity_lengths_are_uniform():
    inputs = Parity(min_length=3, length=7).sample(5000, 0).inputs
    counts = (inputs != PAD).sum(1).bincount(minlength=8)
    assert counts[:3].sum() == 0 and (counts[3:] - 1000).abs().max() < 5 * 800**0.5


def test_oracle_and_chance():
    for task in (Parity(), Parity(cumulative=True), GroupWords(group="A5", length=30)):
        check_solved(task)
        check_chance(task)


def test_the_same_bytes_in_a_fresh_process():
    check_fresh_process({"parity": {"length": 20}, "group": {"group": "A4xZ5", "length": 16}})


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        (Parity, {"min_length": 9, "length": 8}, "min_length: 9 exceeds length=8"),
        (Parity, {"vocab_size": 4}, "vocab_size"),
        (GroupWords, {"group": "S6"}, "group"),
        (GroupWords, {"group": "S3", "vocab_size": 7}, "vocab_size: 7, but the other options make it 6; leave it out"),
        (GroupWords, {"groups": "S3"}, "did you mean 'group'"),
    ],
)
def test_bad_options(task, options, says):
    with pytest.raises(ConfigError, match=says):
        task.parse(options)


def test_anchors_name_chance():
    assert {a.who: a.value for a in GroupWords(group="S5").anchors()} == {"chance": 1 / 120, "sign alone": 1 / 60}
    assert {a.who: a.value for a in Parity().anchors()}["chance"] == 0.5
    assert len(GroupWords().anchors()) == 5
    assert torch.equal(GroupWords(length=5).sample(3, 1).inputs, GroupWords(length=5).sample(3, 1).inputs)
