"""Tasks of the hub, on made-up rows in the columns that the authors' code reads; prompts written out by hand."""

import datasets
import pytest

from hybridlm.eval.benchmarks.catalogue import CATALOGUE, Options, build
from hybridlm.eval.benchmarks.continuing import Sampling
from hybridlm.lm.parts.errors import DataError

JOINED = ["based_triviaqa", "based_drop", "based_nq_512", "based_nq_1024", "based_nq_2048"]
FDA = {
    "text": "510(k) Summary\nSponsor: Acme.\n Type of test:",
    "key": "type of test",
    "value": " Quantitative \n",
    "file_name": "K1.txt",
}
SWDE = {
    "text": " Runtime 90 min. \n\nSummary of information above...\nruntime:",
    "key": "runtime",
    "value": "90 min",
}
SQUAD = {
    "text": "Oaks grow in Ghent. Elms do not. Oaks grow in\n",
    "context": "Oaks grow in Ghent. Elms do not.\nQuestion: Where do oaks grow?",
    "question": "Where do oaks grow?",
    "value": "Ghent",
}
QA = {
    "context": " [DOC] [TLE] Oaks [PAR] grow in Ghent. The City of oaks is ",
    "question": "The city of oaks is",
    "orig_question": "What is the city of oaks?:",
    "answers": ["Ghent", " Gent "],
}
ROWS = {
    "hazyresearch/based-fda": FDA,
    "hazyresearch/based-swde-v2": SWDE,
    "hazyresearch/based-squad": SQUAD,
    **{f"hazyresearch/{name}": QA for name in JOINED},
}
UNMARKED = "Oaks  grow in Ghent."
PROMPTS = {
    "fda": "510(k) Summary\nSponsor: Acme.\n Type of test:",
    "fda_twice": "Information about Type of test. 510(k) Summary\nSponsor: Acme.\n"
    "510(k) Summary\nSponsor: Acme. Type of test:",
    "swde": "Runtime 90 min. \n\nSummary of information above...\nruntime:",
    "swde_twice": "Information about Runtime. Runtime 90 min.\nRuntime 90 min. Runtime:",
    "squad_completion": "Oaks grow in Ghent. Elms do not. Oaks grow in",
    "squad_completion_twice": "Where do oaks grow? Oaks grow in Ghent. Elms do not.\n\n"
    "Oaks grow in Ghent. Elms do not. Oaks grow in",
    **dict.fromkeys(JOINED, f"{UNMARKED} The city of oaks is"),
    **{f"{name}_twice": f"What is the city of oaks? {UNMARKED}\n{UNMARKED} The city of oaks is" for name in JOINED},
}


@pytest.fixture
def options(tmp_path, tokenizer):
    return Options(tmp_path, tokenizer)


@pytest.fixture
def hub(monkeypatch):
    """The hub; tests change its rows."""
    rows = {dataset: [dict(row)] for dataset, row in ROWS.items()}

    def load_dataset(dataset, split):
        assert split == "validation"
        return datasets.Dataset.from_list(rows[dataset])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return rows


def test_every_task_of_the_hub_is_here():
    assert set(PROMPTS) == {name for name, entry in CATALOGUE.items() if entry.source.startswith("hub: ")}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_is_the_authors(name, hub, options):
    [doc] = build([name], options)[name].eval_docs
    assert doc["prompt"] == PROMPTS[name]


@pytest.mark.parametrize("name", PROMPTS)
def test_what_reaches_the_model_is_48_tokens_up_to_the_line_end(name, hub, options):
    """lm-eval's squad_completion says the same and generates 256 tokens up to a blank line: its defaults win."""
    task = build([name], options)[name]
    task.build_all_requests(rank=0, world_size=1)
    [asked] = [request for request in task.instances if request.request_type == "generate_until"]
    assert asked.args[0] == PROMPTS[name]
    assert Sampling.from_options(asked.args[1]) == Sampling(("\n",), 48, 0.0, 1.0)


def test_answers_are_stripped_and_each_counts(hub, options):
    fda, drop = build(["fda", "based_drop"], options).values()
    assert fda.eval_docs[0]["golds"] == ["Quantitative"] and fda.eval_docs[0]["closed"] == ""
    assert drop.eval_docs[0]["golds"] == ["Ghent", "Gent"] and drop.eval_docs[0]["closed"] == "The city of oaks is"
    found = drop.process_results(drop.eval_docs[0], [" GENT, of course", (-8.0, False), (-9.0, False)])
    assert found["contains"] == 1.0


def test_a_context_loses_its_question_however_often_it_ends_in_it(hub, options):
    context = "Oaks grow in Ghent. The city of oaks isthe city of oaks IS"
    hub["hazyresearch/based_drop"] = [QA | {"context": context, "question": "the city of oaks is"}]
    [doc] = build(["based_drop"], options)["based_drop"].eval_docs
    assert doc["prompt"] == "Oaks grow in Ghent. the city of oaks is"


def test_a_row_without_an_answer_is_left_out(hub, options):
    hub["hazyresearch/based_nq_512"] += [QA | {"answers": []}, QA | {"answers": [" "]}]
    assert len(build(["based_nq_512"], options)["based_nq_512"].eval_docs) == 1


@pytest.mark.parametrize(
    ("name", "column"),
    [("fda", "value"), ("swde_twice", "key"), ("squad_completion_twice", "context"), ("based_nq_512", "answers")],
)
def test_a_missing_column_is_one_clear_error(name, column, hub, options):
    dataset = CATALOGUE[name].source.removeprefix("hub: ")
    del hub[dataset][0][column]
    with pytest.raises(DataError) as error:
        build([name], options)
    there = ", ".join(map(repr, hub[dataset][0]))
    assert str(error.value) == (
        f"task {name!r}: its texts: {dataset} on the Hugging Face hub has no column {column!r}, only {there}; its "
        "layout has changed on the hub, or a copy in the cache of datasets is another one's: remove that copy and run "
        "again"
    )


def test_the_original_question_is_read_only_where_it_is_asked(hub, options):
    del hub["hazyresearch/based_drop"][0]["orig_question"]
    assert len(build(["based_drop"], options)["based_drop"].eval_docs) == 1
    with pytest.raises(DataError, match="no column 'orig_question'"):
        build(["based_drop_twice"], options)


@pytest.mark.parametrize("name", PROMPTS)
def test_no_hub_is_one_clear_error(name, options, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach\n the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as error:
        build([name], options)
    dataset = CATALOGUE[name].source.removeprefix("hub: ")
    assert str(error.value) == (
        f"task {name!r}: its texts are on the Hugging Face hub as {dataset}, which could not be read (Couldn't reach "
        "the hub); run it once with a network and without HF_HUB_OFFLINE, or take squad_cloze, drop_cloze, "
        "triviaqa_recall_1024, nq_recall_1024"
    )
