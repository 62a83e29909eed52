"""Clozes read the other way round: from what is asked back to the passage."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.eval.benchmarks.catalogue import Options, build
from hybridlm.eval.recall.cloze import LEAST_WORDS, cloze, clozes, completion
from hybridlm.eval.recall.passages import answerable, drop, squad


def made(passage, question, *golds):
    asked = answerable(passage, question, list(golds))
    assert asked is not None
    return cloze(asked)


def test_the_sentence_is_cut_before_the_answer():
    passage = "Elms die young. In the city of Ghent oaks have grown since 1901, and firs (1950)."
    found = made(passage, "When?", "since 1901", "1901", "1902")
    assert found.stem == "In the city of Ghent oaks have grown"
    assert found.asked.golds == ("since 1901", "1901")
    start, end = found.asked.place
    assert passage[start:end] == "In the city of Ghent oaks have grown since 1901"


def test_of_several_sentences_it_is_the_one_nearest_to_the_question():
    passage = "The oaks and elms of Ghent are tall.\nThe mayor once lived in Ghent. The oldest of trees is in Ghent."
    assert made(passage, "Where is the oldest tree?", "Ghent").stem == "The oldest of trees is in"
    assert made(passage, "Where did the mayor live?", "Ghent").stem == "The mayor once lived in"
    assert made(passage, "Which city?", "Ghent").stem == "The oaks and elms of"  # a tie: the first


@pytest.mark.parametrize(
    ("passage", "golds"),
    [
        ("Ghent is where all of the oaks grow.", ["Ghent"]),  # nothing before it
        ("The oaks grew in Ghent.", ["grew in", "Ghent"]),  # three words before it, then an answer before it
        ("The oaks and the elms (Ghent) are tall.", ["Ghent"]),  # the text before it is no " Ghent"
        ("The oaks and the elms of Ghentbrugge.", ["Ghent"]),  # only part of a word
        ("Here the oaks grow in Ghent. Here the oaks grow in Paris.", ["Ghent"]),  # two ways to go on
        ("She says that the oaks grow in Ghent, a city.", ["Ghent", "the oaks grow"]),  # an answer stands in front
    ],
)
def test_where_no_sentence_asks_for_the_answer_there_is_no_cloze(passage, golds):
    assert made(passage, "Where do the oaks grow?", *golds) is None


@pytest.mark.parametrize(
    ("passage", "stem"),
    [
        ("It rained. Dr. J. F. Smith of St. Johns was born in Ghent.", "Dr. J. F. Smith of St. Johns was born in"),
        ('He said "Oaks!" Then they all went to Ghent.', "Then they all went to"),
        ("It cost 3.5 million (U.S. dollars) to build Ghent.", "It cost 3.5 million (U.S. dollars) to build"),
        ("Is it tall? “Yes, it is the one in Ghent”.", "“Yes, it is the one in"),
        ("  The oldest of all is Ghent.", "The oldest of all is"),
        ("A list of towns\nThe oldest of all is Ghent.", "The oldest of all is"),
    ],
)
def test_where_a_sentence_begins(passage, stem):
    assert made(passage, "Which city?", "Ghent").stem == stem


def test_a_sentence_is_asked_once():
    passage = "The oaks of the mayor stand in Ghent. The elms of the king stand in Paris."
    asked = [answerable(passage, "?", [gold]) for gold in ("Paris", "Ghent", "Paris")]
    assert [found.stem for found in clozes(asked)] == [
        "The elms of the king stand in",
        "The oaks of the mayor stand in",
    ]


WORDS = st.lists(st.sampled_from(["oak", "elm", "fir", "ash", "yew"]), min_size=1, max_size=8)


@given(sentences=st.lists(WORDS, min_size=1, max_size=5), gold=WORDS.map(" ".join), question=WORDS.map(" ".join))
def test_a_cloze_of_any_passage_has_one_way_to_go_on(sentences, gold, question):
    passage = " ".join(" ".join(words).capitalize() + "." for words in sentences)
    asked = answerable(passage, question, [gold])
    found = asked and cloze(asked)
    if found:
        assert passage.lower().count(found.stem.lower()) == 1
        assert f"{found.stem} {gold}".lower() in passage.lower() and gold not in found.stem.lower()
        assert any(found.stem.startswith(" ".join(words[:LEAST_WORDS]).capitalize()) for words in sentences)


def test_the_prompt_is_that_of_jrt():
    passage = " The oaks grow in Ghent. They live long.. "
    assert completion(passage, "", "The oaks grow in", False) == (
        "The oaks grow in Ghent. They live long. The oaks grow in"
    )
    assert completion(passage, "Where?:", "The oaks grow in", True) == (
        "Where? The oaks grow in Ghent. They live long.\nThe oaks grow in Ghent. They live long. The oaks grow in"
    )


@pytest.mark.parametrize(("name", "source", "n"), [("squad_cloze", squad, 816), ("drop_cloze", drop, 341)])
def test_every_real_cloze_is_answered_by_its_passage(name, source, n, real_files, tokenizer):
    passages = {question.passage for question in source(real_files) if question}
    ends = {passage.strip().strip("."): passage for passage in passages}
    once, twice = build([name, f"{name}_twice"], Options(real_files, tokenizer)).values()
    assert len(once.eval_docs) == len(twice.eval_docs) == n
    for doc, again in zip(once.eval_docs, twice.eval_docs, strict=True):
        stem, [answer, *more] = doc["closed"], doc["golds"]
        read = doc["prompt"].removesuffix(f". {stem}")
        passage = ends[read]  # a passage of the set, whole
        [place] = [match.end() for match in re.finditer(re.escape(stem), passage)]
        assert passage[place:].lstrip().startswith(answer) and passage[place].isspace()
        assert not re.match(r"\w", passage[place:].lstrip()[len(answer) :])
        assert all(gold.lower() in answer.lower() for gold in more)
        assert not any(gold.lower() in stem.lower() for gold in doc["golds"])
        assert len(stem.split()) >= LEAST_WORDS and stem == stem.strip()
        before = passage[: passage.index(stem)]
        assert not before.strip() or re.search(r"[.!?][^\w\s]*\s+$|\n$", before)
        assert again["prompt"].endswith(f"{read.strip()}.\n{read.strip()}. {stem}") and again["golds"] == doc["golds"]


def test_among_other_passages_the_sentence_still_stands_once_with_its_answer(real_files, tokenizer):
    [task] = build(["squad_cloze_512"], Options(real_files, tokenizer)).values()
    for doc in list(task.eval_docs)[:100]:
        stem = doc["closed"]
        context = doc["prompt"].removesuffix(f". {stem}")
        assert context.lower().count(stem.lower()) == 1 and f"{stem} {doc['golds'][0]}" in " ".join(context.split())
        assert 400 < len(tokenizer.encode(context)) <= 512
