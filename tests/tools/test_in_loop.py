"""Measurements while training: they are logged and kept, and training does not notice them."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hybridlm.eval.needles import Needles
from hybridlm.eval.positions import Positions
from hybridlm.lm.config import Recipe
from hybridlm.lm.errors import ConfigError
from hybridlm.lm.run import Run
from hybridlm.tools.in_loop import hooks, measurements
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
        f"eval.needles={{tasks: [single_1, vt], lengths: [500], depths: 2, generate: false, haystack: {text}}}",
        f"eval.positions={{text: {text}, max_tokens: 200, blocks: 2}}",
        f"eval.probes=[{PROBE}]",
    ]


def trained(run: Run) -> list[dict]:
    """The records of training and validation, without what the clock says."""
    kept = [r for r in run.metrics() if not r["kind"].startswith("eval")]
    return [{key: value for key, value in r.items() if key not in ("time", "seconds")} for r in kept]


def test_training_does_not_notice_that_it_is_measured(tiny_recipe, measured):
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
    assert {"eval/needles/single_1/500/answer_nats", "eval/token_probes/" + probe_label() + "/accuracy"} <= set(
        board.Tags()["scalars"]
    )
    steps = [event.step for event in board.Scalars("eval/needles/single_1/500/answer_nats")]
    assert steps == [3, 6, 8]
    assert "step 3 | needles | " in out.getvalue() and "nats per token by position" in out.getvalue()


def probe_label() -> str:
    from hybridlm.eval.token_probes import parse_slices

    given = {"task": "mqar", "vocab_size": 64, "length": 32, "n_pairs": 2, "examples": 8}
    return parse_slices([given], 300)[0].task.label


def test_the_loop_and_the_checkpoint_of_its_step_score_alike(tiny_recipe, measured):
    run = pretrain(Recipe.load(tiny_recipe, [*measured, "eval.every=4"]), Console(quiet=True))
    at_four = json.loads((run.folder / "eval" / "step-000004" / "positions.json").read_text())
    short = pretrain(
        Recipe.load(tiny_recipe, [*measured, "name=short", "train.steps=8", "eval.every=0"]), Console(quiet=True)
    )
    ends = [json.loads((r.folder / "eval" / "step-000008" / "positions.json").read_text()) for r in (run, short)]
    assert ends[0] == ends[1] != at_four


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


def test_a_suite_brings_its_measurements_beside_those_with_options(tiny_recipe):
    run = Run.create(Recipe.load(tiny_recipe, ["eval.suites=[long]", f"eval.probes=[{PROBE}]", "eval.every=5"]))
    tokenizer = SimpleNamespace(bos_id=1)
    asked = measurements(run.recipe, tokenizer, run)  # type: ignore[arg-type]
    assert [one.name for one in asked] == ["needles", "positions", "token_probes"]
    assert [(hook.name, hook.every) for hook in hooks(run.recipe, asked)] == [(one.name, 5) for one in asked]
    tasks = Recipe.load(tiny_recipe, ["eval.tasks=[piqa]", "eval.suites=[long]"])
    asked = measurements(tasks, tokenizer, run)  # type: ignore[arg-type]
    assert [one.name for one in asked] == ["tasks", "needles", "positions"] and not hooks(tasks, asked)


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
