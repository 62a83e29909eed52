"""Copying, n-gram look-up and the phonebook, read again as strings."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.synthetic.copying import FIRST_NAMES, LAST_NAMES, Copy, NgramLookup, Phonebook
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.eval.synthetic.checks import check_chance, check_fresh_process, check_solved

IGNORE = -100


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 40), st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_copy_repeats_its_string(vocab_size, a, b, seed):
    task = Copy(vocab_size=vocab_size, min_string=min(a, b), max_string=max(a, b))
    bos, sep, eos = range(vocab_size - 3, vocab_size)
    examples = task.sample(15, seed)
    for tokens, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
        end = tokens.index(sep)
        string = tokens[1:end]
        assert tokens[0] == bos and task.min_string <= len(string) <= task.max_string and max(string) < bos
        assert tokens[end + 1 :] == string + [eos] * (task.length - 2 - 2 * len(string))
        assert labels == [IGNORE] * end + [*string, eos] + [IGNORE] * (task.length - 2 - 2 * len(string))


def test_copy_lengths_are_uniform():
    labels = Copy(min_string=3, max_string=7).sample(5000, 0).labels
    counts = ((labels != IGNORE).sum(1) - 1).bincount(minlength=8)
    assert counts[:3].sum() == 0 and (counts[3:] - 1000).abs().max() < 5 * 800**0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 26), st.integers(1, 3), st.integers(1, 4), st.integers(0, 30), st.booleans(), st.integers(0, 99))
def test_lookup_asks_for_what_follows_the_only_occurrence(letters, ngram, answer, extra, before, seed):
    m = min(ngram + answer + extra, letters**ngram)
    if m < ngram + answer:
        return
    query = "before" if before else "after"
    task = NgramLookup(vocab_size=letters + 2, string=m, ngram=ngram, answer=answer, query=query)
    examples = task.sample(10, seed)
    for tokens, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
        text = "".join(chr(ord("a") + token) if token < letters else "^|"[token - letters] for token in tokens)
        first, second, rest = text.removeprefix("^").split("|")
        gram, string = (first, second) if before else (second, first)
        assert (len(gram), len(string)) == (ngram, m)
        occurrences = [i for i in range(m) if string.startswith(gram, i)]
        assert len(occurrences) == 1
        due = string[occurrences[0] + ngram :][:answer]
        assert len(due) == answer and rest == due[:-1]
        assert "".join(chr(ord("a") + x) for x in labels if x != IGNORE) == due
        assert labels[: -len(due)] == [IGNORE] * (task.length - answer)


def test_phonebook_answers_stand_in_the_book():
    task = Phonebook(entries=7, digits=6)
    examples = task.sample(30, 0)
    for tokens, labels in zip(examples.inputs, examples.labels, strict=True):
        number = "".join(str(x) for x in labels.tolist() if x != IGNORE)
        text = Phonebook.render(tokens) + number[-1]
        lines = [re.fullmatch(r"([A-Z][a-z]+) ([A-Z][a-z]+): ([6-9]\d{5})", line) for line in text.split("\n")]
        assert all(lines) and len(lines) == 10
        entries = [(line[1], line[2], line[3]) for line in lines if line]
        assert all(first in FIRST_NAMES and last in LAST_NAMES for first, last, _ in entries)
        book = entries[:7]
        assert len({entry[:2] for entry in book}) == 7
        assert set(entries[7:]) <= set(book) and len(set(entries[7:])) == 3
        assert entries[-1][2] == number
        assert (labels != IGNORE).nonzero().flatten().tolist() == list(range(task.length - 6, task.length))


def test_phonebook_names_are_different_words():
    assert len({*FIRST_NAMES, *LAST_NAMES}) == len(FIRST_NAMES) + len(LAST_NAMES) == 96


@pytest.mark.parametrize("task", [Copy(), NgramLookup(answer=3), Phonebook(entries=5)])
def test_solver(task):
    check_solved(task)


def test_the_same_bytes_in_a_fresh_process():
    check_fresh_process({"copy": {}, "ngram_lookup": {"answer": 2}, "phonebook": {"entries": 5}})


def test_chance():
    check_chance(NgramLookup(), 1000)
    assert [a.value for a in Copy(vocab_size=13).anchors()] == [0.1]


def test_a_guesser_among_the_entries_scores_the_anchor():
    task = Phonebook(entries=4)
    examples = task.sample(800, 0)
    shown = examples.inputs[:, : 14 * 4].unflatten(1, (4, 14))[:, :, 3:13]  # the four numbers
    guess = shown[torch.arange(800), torch.arange(800) % 4].flatten()
    exact = task.scores(torch.nn.functional.one_hot(guess, task.vocab_size).float(), examples)["exact"].mean().item()
    anchor = {a.who: a.value for a in task.anchors()}["any entry's number"]
    assert exact == pytest.approx(anchor, abs=5 * (anchor * 0.75 / 800) ** 0.5)


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        (Copy, {"min_string": 9, "max_string": 8}, "min_string: 9 exceeds max_string=8"),
        (Copy, {"length": 40}, "length: 40, but the other options make it 42; leave it out"),
        (NgramLookup, {"string": 3, "ngram": 3}, "string: 3 letters hold no 3-gram with 1 letters after it"),
        (NgramLookup, {"vocab_size": 4, "ngram": 2, "string": 20}, "2 letters make 4 2-grams"),
        (NgramLookup, {"query": "suffix"}, "query"),
        (Phonebook, {"entries": 2}, "entries"),
        (Phonebook, {"vocab_size": 5}, "vocab_size: 5, but"),
    ],
)
def test_bad_options(task, options, says):
    with pytest.raises(ConfigError, match=says):
        task.parse(options)
