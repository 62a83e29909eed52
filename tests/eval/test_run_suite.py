"""`hybridlm eval`: what a run's folder holds afterwards, and what is refused before anything is computed."""

import copy
import json
import math

import pytest
import torch
from rich.console import Console

from hybridlm.eval.benchmarks.conditions import Conditions
from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.eval.benchmarks.scores import Score, Scores
from hybridlm.eval.benchmarks.suites import SUITES
from hybridlm.eval.measurement import LONG
from hybridlm.eval.needles.measurement import NeedlesMeasurement
from hybridlm.eval.synthetic.token_probes import Probed, TokenProbes
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.eval import NeedlesConfig
from hybridlm.lm.run import Run
from hybridlm.tools import score
from hybridlm.tools.report_page.collect import _newest_evaluations
from hybridlm.tools.score import run_suite


@pytest.fixture
def run_folder(attention_model, tokenizer, cache, tmp_path, monkeypatch):
    """A run whose newest checkpoint is the small random model."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    recipe = Recipe.load("demo", overrides=[f"data.cache={cache}", "model.context=256", f"train.out={folder}"])
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.setattr(Run, "newest_checkpoint", lambda self: self.checkpoints / "step-000007")
    monkeypatch.setattr(score, "load_run", lambda run: attention_model)
    monkeypatch.setattr(Run, "tokenizer", lambda self: tokenizer)
    return folder


def quiet():
    return Console(quiet=True)


def test_results_of_several_evaluations_are_kept_together(run_folder):
    path = run_folder / "eval" / "step-000007" / "tasks.json"
    run_suite(run_folder, None, ["sciq", "piqa"], limit=2, console=quiet(), batch_tokens=512)
    run_suite(run_folder, None, ["sciq", "copa"], console=quiet(), batch_tokens=512)
    kept = Scores.load(path)
    found = {(score.task, score.n, str(score.conditions).partition(",")[0]) for score in kept.scores}
    assert found == {
        ("sciq", 2, "first 2 documents"),
        ("sciq", 3, "all documents"),
        ("copa", 2, "all documents"),
        ("piqa", 2, "first 2 documents"),
    }
    assert kept.checkpoint == "step-000007" and kept.limit is None and kept.max_length == 256


def test_a_score_is_replaced_only_by_one_of_the_same_conditions(run_folder, monkeypatch):
    path = run_folder / "eval" / "step-000007" / "tasks.json"

    def kept(**how) -> list[str]:
        run_suite(run_folder, None, ["sciq"], console=quiet(), batch_tokens=512, **how)
        return [str(score.conditions) for score in Scores.load(path).scores if score.metric == "acc"]

    whole, quick, shots = (
        "all documents, 0-shot, 256 tokens",
        "first 2 documents, 0-shot, 256 tokens",
        "all documents, ",
    )
    assert kept() == [whole]
    assert kept(limit=2) == [whole, quick]
    assert kept(limit=2) == [whole, quick]
    assert kept(limit=99) == [quick, whole]  # no more than there are: the same as all of them
    shots += "1-shot drawn by seed 4, 256 tokens"
    assert kept(num_fewshot=1, fewshot_seed=4) == [quick, whole, shots]
    assert kept(max_length=64)[-1] == "all documents, 0-shot, 64 tokens" and len(kept(max_length=64)) == 4
    assert [name.name for name in path.parent.iterdir()] == ["tasks.json"]


def test_a_score_without_conditions_gives_way_to_the_same_one_with_them_and_to_no_other(run_folder):
    """Files of older versions."""
    path = run_folder / "eval" / "step-000007" / "tasks.json"
    run_suite(run_folder, None, ["sciq"], console=quiet(), batch_tokens=512)
    content = json.loads(path.read_text())
    for one in content["scores"]:
        del one["conditions"]
    path.write_text(json.dumps(content))
    run_suite(run_folder, None, ["sciq"], limit=2, console=quiet(), batch_tokens=512)
    found = [(score.n, score.conditions) for score in Scores.load(path).scores if score.metric == "acc"]
    assert found == [(3, None), (2, Conditions(256, 2))]
    run_suite(run_folder, None, ["sciq"], console=quiet(), batch_tokens=512)
    found = [(score.n, score.conditions) for score in Scores.load(path).scores if score.metric == "acc"]
    assert found == [(2, Conditions(256, 2)), (3, Conditions(256))]


def test_a_score_that_is_not_finite_is_null_in_a_file_of_plain_json(tmp_path):
    score = Score("t", "perplexity", math.inf, None, 3, None, "abc", 0, 0, 0, Conditions(64))
    Scores([score], "step-1", 64, None, "model").save(tmp_path / "tasks.json")
    plain = json.loads((tmp_path / "tasks.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert plain["scores"][0]["value"] is None
    assert math.isnan(Scores.load(tmp_path / "tasks.json").scores[0].value)


def test_other_weights_do_not_inherit_scores(run_folder, attention_model, monkeypatch):
    run_suite(run_folder, None, ["sciq"], console=quiet(), batch_tokens=512)
    path = run_folder / "eval" / "step-000007" / "tasks.json"
    before = Scores.load(path)
    other = copy.deepcopy(attention_model)
    with torch.no_grad():
        other.norm.weight.mul_(1.5)
    monkeypatch.setattr(score, "load_run", lambda run: other)
    run_suite(run_folder, None, ["copa"], console=quiet(), batch_tokens=512)
    after = Scores.load(path)
    assert {score.task for score in after.scores} == {"copa"} and after.fingerprint != before.fingerprint


def test_a_suite_runs_its_tasks(run_folder, monkeypatch):
    monkeypatch.setitem(SUITES, "probes", ("ioi_text", "copycolors"))
    run_suite(run_folder, "probes", ["sciq"], limit=2, console=quiet(), batch_tokens=512)
    kept = Scores.load(run_folder / "eval" / "step-000007" / "tasks.json")
    assert [*dict.fromkeys(score.task for score in kept.scores)] == ["ioi_text", "copycolors", "sciq"]


def test_long_contexts_are_cut_and_counted_or_refused(run_folder, capsys):
    path = run_folder / "eval" / "step-000007" / "tasks.json"
    run_suite(run_folder, None, ["sciq"], max_length=16, console=quiet(), batch_tokens=512)
    assert {score.truncated for score in Scores.load(path).scores} == {12}
    with pytest.raises(ConfigError, match=r"^task 'sciq', document 0: \d+ tokens, but max_length=16 has room for 16"):
        run_suite(run_folder, None, ["sciq"], max_length=16, on_long="error", console=quiet(), batch_tokens=512)


def test_what_cannot_be_scored_is_refused_before_the_model_is_run(run_folder, monkeypatch):
    monkeypatch.setattr(HybridLM, "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ConfigError, match=r"^task 'copying_32', document 0: max_gen_toks=192 leaves no room"):
        run_suite(run_folder, None, ["sciq", "copying_32"], limit=2, max_length=64, console=quiet())
    with pytest.raises(ConfigError, match=r"^batch_tokens: 32 is below max_length=64; one sequence must fit"):
        run_suite(run_folder, None, ["sciq"], max_length=64, batch_tokens=32, console=quiet())


def test_nothing_asked_and_wrong_names_are_refused_before_the_model_is_read(run_folder, monkeypatch):
    monkeypatch.delattr(score, "load_run")
    with pytest.raises(ConfigError, match=r"^tasks: none given; name tasks or a suite$"):
        run_suite(run_folder, None, [], console=quiet())
    with pytest.raises(ConfigError, match=r"^suite 'comonsense': unknown; did you mean 'commonsense'"):
        run_suite(run_folder, "comonsense", [], console=quiet())
    with pytest.raises(ConfigError, match=r"^task 'hellaswagg': unknown; did you mean 'hellaswag'"):
        run_suite(run_folder, None, ["hellaswagg"], console=quiet())


def test_long_suite_measures_needles_and_positions(run_folder, monkeypatch):
    order, loaded = [], []
    for kind in LONG.values():
        monkeypatch.setattr(kind, "prepare", lambda self: order.append(f"prepare {self.name}"))
        monkeypatch.setattr(kind, "rehearse", lambda self, _model: order.append(f"rehearse {self.name}"))
        monkeypatch.setattr(
            kind, "run", lambda self, _model, _at: order.append(self.name) or TokenProbes([], self.name)
        )
    load_run = score.load_run
    monkeypatch.setattr(score, "load_run", lambda run: loaded.append(1) or load_run(run))
    run_suite(run_folder, "long", [], console=quiet())
    for kind in ("needles", "positions"):
        assert TokenProbes.load(run_folder / "eval" / "step-000007" / f"{kind}.json").checkpoint == kind
    assert len(loaded) == 1
    prepared = ["prepare needles", "rehearse needles", "prepare positions", "rehearse positions"]
    assert order == [*prepared, "needles", "positions"]


def test_settings_of_the_recipe_can_be_others_for_once(run_folder, monkeypatch):
    seen = []

    def run(self, _model, _at):
        seen.append((self.questions.lengths, self.batch_tokens))
        return TokenProbes([])

    monkeypatch.setattr(NeedlesMeasurement, "run", run)
    monkeypatch.setattr(NeedlesMeasurement, "rehearse", lambda *_: None)
    monkeypatch.setattr("hybridlm.eval.needles.measurement.read_text", lambda *_: "A text. " * 50)
    run_suite(run_folder, None, ["needles"], overrides=["eval.needles={lengths: [64, 96]}"], console=quiet())
    assert seen == [([64, 96], 8192)]
    assert Recipe.load(run_folder / "recipe.yaml").eval.needles is None
    with pytest.raises(ConfigError, match=r"^override 'model.d_model=8': a finished run has only eval settings"):
        run_suite(run_folder, None, ["needles"], overrides=["model.d_model=8"], console=quiet())


def test_limit_bounds_needles_and_positions_and_a_bar_shows_how_far_they_are(run_folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The {i}th line is about the number {i} and nothing else at all." for i in range(900)))
    given = [
        *(f"eval.needles.haystack={text}", "eval.needles.tasks=[single_1]", "eval.needles.lengths=[512]"),
        *("eval.needles.generate=false", f"eval.positions.text={text}", "eval.positions.max_tokens=64"),
    ]
    run_suite(run_folder, "long", [], limit=2, overrides=given, console=quiet())
    results = run_folder / "eval" / "step-000007"
    cells = json.loads((results / "needles.json").read_text())["cells"]
    assert [(cell["task"], cell["n"]) for cell in cells] == [("single_1", 1)] * 2
    assert {curve["tokens"] for curve in json.loads((results / "positions.json").read_text())["curves"]} == {2 * 64}
    bars = capsys.readouterr().err
    assert "needles: 100%" in bars and "positions: 100%" in bars


@pytest.mark.parametrize(
    ("given", "limit", "depths", "samples"),
    [
        ({"depths": 40, "samples": 3}, 200, 40, 3),
        ({"depths": 40, "samples": 3}, 80, 40, 2),
        ({"depths": 40, "samples": 3}, 7, 7, 1),
        ({"depths": [0.0, 0.1, 0.5, 1.0]}, 2, [0.0, 1.0], 1),
        ({"depths": [0.0, 0.1, 0.5, 1.0]}, 1, [0.0], 1),
    ],
)
def test_fewer_needles_are_fewer_samples_then_fewer_depths(given, limit, depths, samples):
    found = NeedlesConfig(**given).at_most(limit)
    assert (found.depths, found.samples) == (depths, samples)


def test_a_result_of_other_questions_is_kept_beside_the_one_before(tmp_path):
    path = tmp_path / "step-000001" / "token_probes.json"

    def probed(n: int, accuracy: float) -> TokenProbes:
        return TokenProbes([Probed("mqar", "mqar", accuracy, 0.0, None, n)])

    probed(100, 0.5).save(path)
    probed(100, 0.6).save(path)  # the same again
    probed(3, 1.0).save(path)
    probed(4, 0.0).save(path)
    kept = {file.name: TokenProbes.load(file).slices[0] for file in path.parent.iterdir()}
    assert {name: (one.n, one.accuracy) for name, one in kept.items()} == {
        "token_probes-1.json": (100, 0.6),
        "token_probes-2.json": (3, 1.0),
        "token_probes.json": (4, 0.0),
    }
    assert _newest_evaluations(tmp_path)["token_probes"]["slices"][0]["n"] == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "tasks"}', '{"kind": "tasks", "scores": [{"task": "piqa"}]}'])
@pytest.mark.parametrize(
    ("kind", "new"), [(TokenProbes, TokenProbes([])), (Scores, Scores([], "step-000001", 8, None))]
)
def test_a_result_is_kept_beside_a_file_that_cannot_be_read(kind, new, content, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(content)
    new.save(path)
    assert kind.load(path) == new
    assert (tmp_path / "result-1.json").read_text() == content


def test_the_evaluations_of_a_report_are_those_of_the_highest_step(tmp_path):
    for step in ("step-999999", "step-1000000"):
        TokenProbes([], checkpoint=step).save(tmp_path / step / "token_probes.json")
    assert _newest_evaluations(tmp_path)["token_probes"]["checkpoint"] == "step-1000000"


def test_scores_of_a_chat_are_kept_beside_plain_ones(run_folder, monkeypatch):
    (run_folder / "tokenizer").mkdir()
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    (run_folder / "tokenizer" / "chat_template.jinja").write_text(template)
    prompts: list[str] = []

    def note(self, context, continuation):
        prompts.append(context)
        return encode(self, context, continuation)

    encode = HybridHarness._encode
    monkeypatch.setattr(HybridHarness, "_encode", note)
    run_suite(run_folder, None, ["piqa"], limit=1, console=quiet(), batch_tokens=512)
    run_suite(run_folder, None, ["piqa"], limit=1, num_fewshot=1, console=quiet(), batch_tokens=512, chat=True)
    kept = Scores.load(run_folder / "eval" / "step-000007" / "tasks.json").scores
    assert {score.conditions.asked for score in kept if score.conditions} == {
        "first 1 documents, 0-shot",
        "first 1 documents, 1-shot, as a chat",
    }
    asked = prompts[-1]
    assert [asked.count(turn) for turn in ("[user] Question:", "[assistant]")] == [2, 2] and asked.endswith(
        "[assistant]"
    )
