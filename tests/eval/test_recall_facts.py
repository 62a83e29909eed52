"""Lists of answered questions, read back line by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.eval.benchmarks.catalogue import Options, build
from hybridlm.eval.recall.facts import Fact, fact, fact_list


def count(text):
    return len(text.split())


def read(text):
    """(question, answer) pairs of a list; fails on any line that is not one of them."""
    lines = text.split("\n")
    assert len(lines) % 2 == 0
    questions = [line.removeprefix("Question: ") for line in lines[::2]]
    answers = [line.removeprefix("Answer: ") for line in lines[1::2]]
    assert all(map(str.startswith, lines, ["Question: ", "Answer: "] * (len(lines) // 2)))
    return list(zip(questions, answers, strict=True))


def test_facts_whose_answer_the_question_gives_away_are_left_out():
    assert fact(" Who wrote Emma? ", ["Jane Austen ", "Austen", "Austen", "J"]) == Fact(
        "Who wrote Emma?", ("Jane Austen", "Austen")
    )
    assert fact("What did Austen write?", ["Emma", "a book by austen", "AUSTEN"]) is None
    assert fact("Which letter?", ["A", "letter A"]) is None


def numbers(n, distinct=1000):
    return [Fact(f"what is the number of town {i}?", (f"no{i % distinct}x", f"alias{i % distinct}x")) for i in range(n)]


@given(n=st.integers(1, 40), distinct=st.integers(1, 40), i=st.integers(0, 39), budget=st.integers(10, 300))
def test_a_list_has_its_fact_once_and_no_other_with_its_answer(n, distinct, i, budget):
    facts, i = numbers(n, distinct), i % n
    pairs = read(fact_list(facts, i, budget, count))
    assert pairs.count((facts[i].question, facts[i].golds[0])) == 1 == [a for _, a in pairs].count(facts[i].golds[0])
    assert len(set(pairs)) == len(pairs) and set(pairs) <= {(f.question, f.golds[0]) for f in facts}
    others = sum(f.golds != facts[i].golds for f in facts)
    assert len(pairs) == max(min(budget // 10, others + 1), 1)  # every fact has ten words


def test_an_accepted_answer_in_another_question_keeps_that_fact_out():
    facts = [Fact("who wrote it?", ("Ann", "Eve")), Fact("when was EVE born?", ("1901",)), Fact("where?", ("Rome",))]
    assert read(fact_list(facts, 0, 100, count)) == [("who wrote it?", "Ann"), ("where?", "Rome")]


def test_a_tokenizer_that_needs_more_for_the_whole_never_exceeds_the_budget():
    def more(text):
        return count(text) + text.count("\n") ** 2

    for budget in (9, 30, 61, 100):
        text = fact_list(numbers(40), 7, budget, more)
        assert more(text) <= budget or len(read(text)) == 1


def test_the_first_questions_are_spread_evenly_over_the_list():
    facts = numbers(400)
    depths = []
    for i in range(50):
        pairs = read(fact_list(facts, i, 200, count))
        depths.append(pairs.index((facts[i].question, facts[i].golds[0])))
    assert all(1 <= depths.count(depth) <= 4 for depth in range(20))


@pytest.mark.parametrize("name", ["triviaqa", "nq"])
def test_every_real_list_answers_its_question_once(name, real_files, tokenizer):
    once, twice = build([f"{name}_recall_512", f"{name}_recall_512_twice"], Options(real_files, tokenizer)).values()
    assert len(once.eval_docs) == len(twice.eval_docs) == 1000
    for doc, again in zip(once.eval_docs, twice.eval_docs, strict=True):
        context = doc["prompt"].removesuffix(f"\n{doc['closed']}")
        question = doc["closed"].removeprefix("Question: ").removesuffix("\nAnswer:")
        assert again["prompt"] == "\n".join([context, f"Question: {question}", doc["prompt"]])
        asked = [answer for other, answer in read(context) if other == question]
        assert asked == doc["golds"][:1]
        golds = [gold.lower() for gold in doc["golds"]]
        with_gold = [text for text in map(" ".join, read(context)) if any(gold in text.lower() for gold in golds)]
        assert with_gold == [f"{question} {asked[0]}"] and not any(gold in question.lower() for gold in golds)
    for doc in list(once.eval_docs)[:100]:
        context = doc["prompt"].removesuffix(f"\n{doc['closed']}")
        assert 400 < len(tokenizer.encode(context)) <= 512
