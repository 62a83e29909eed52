"""Going on with a run: a refusal changes nothing, what changes is kept, one launch at a time."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from hybridlm.lm import HybridLM
from hybridlm.lm.parts.errors import CheckpointError, ConfigError, UserError
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run
from hybridlm.lm.train.lock import held
from hybridlm.lm.train.loop import Trainer
from hybridlm.tools.pretrain import pretrain

SHORT = "train.steps=2"


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.d_model=16", r"model.d_model is 32 there and 16 here"),
        ("seed=1", r"data seed is 0, this recipe's is 1"),
        ("model.vocab_size=290", r"model.vocab_size is 300 there and 290 here"),
        ("data.train=[{name: made-up, format: json, path: CORPUS}]", r"data fingerprint is"),
        ("train.micro_batch=3", r"train.micro_batch"),
        ("eval.tasks=[pica]", r"task 'pica'"),
    ],
)
def test_a_refused_resume_changes_no_file(tiny_recipe, console, change, says):
    run = pretrain(Recipe.load(tiny_recipe, [SHORT]), console)
    before = files(run.folder)
    other = Recipe.load(tiny_recipe, [change.replace("CORPUS", str(tiny_recipe.parent / "corpus.jsonl"))])
    with pytest.raises(UserError, match=says):
        pretrain(other, console)
    assert files(run.folder) == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.jsonl", "[1, 2]\n", r"metrics\.jsonl: not a file of one JSON record a line"),
        ("metrics.jsonl", '{"loss": 1.0}\n', r"metrics\.jsonl: a line has no kind or no step"),
        ("code.json", "{", r"code\.json: does not say what the run has been so far"),
        ("code.json", "[]", r"code\.json: does not say what the run has been so far"),
        ("origins.json", "{", r"origins\.json: does not say where the run came from"),
        ("origins.json", "null", r"origins\.json: does not say where the run came from"),
        ("recipe.yaml", "name: [", r"recipe\.yaml: does not say what the run has been so far"),
        ("recipe.yaml", "", r"recipe\.yaml: does not say what the run has been so far"),
    ],
)
def test_a_resume_refused_for_a_broken_file_changes_no_file(tiny_recipe, console, name, content, says):
    run = pretrain(Recipe.load(tiny_recipe, [SHORT]), console)
    (run.folder / name).write_text(content)
    before = files(run.folder)
    with pytest.raises(UserError, match=says):
        pretrain(Recipe.load(tiny_recipe, ["train.steps=3"]), console)
    assert files(run.folder) == before


def test_a_set_added_to_a_run_that_went_past_its_steps_is_measured(tiny_recipe, console):
    run = pretrain(Recipe.load(tiny_recipe, [SHORT]), console)
    source = Recipe.load(tiny_recipe).data.valid["held_out"][0].model_dump_json()
    more = ["train.steps=1", "eval.yardsticks=true", f"data.valid.added=[{source}]"]
    pretrain(Recipe.load(tiny_recipe, more), console)
    assert {"valid/held_out", "valid/added"} <= {record["kind"] for record in run.metrics() if record["step"] == 2}
    assert set(json.loads((run.folder / "yardsticks.json").read_text())) == {"held_out", "added"}


def test_a_new_run_that_is_refused_leaves_no_folder(tiny_recipe, console):
    recipe = Recipe.load(tiny_recipe, ["train.batch=3", "train.micro_batch=2"])
    with pytest.raises(ConfigError, match="train"):
        pretrain(recipe, console)
    assert not recipe.run_folder().exists()


def test_weights_that_do_not_fit_the_recipe_are_one_line(tiny_recipe, console):
    run = pretrain(Recipe.load(tiny_recipe, [SHORT]), console)
    whole = (run.folder / "recipe.yaml").read_text()
    (run.folder / "recipe.yaml").write_text(whole.replace("d_model: 32", "d_model: 16"))
    with pytest.raises(CheckpointError) as error:
        HybridLM.from_run(run.folder)
    line = str(error.value)
    assert (
        "step-000002: not the weights of this run's recipe.yaml: embed.weight is (300, 32) there and (300, 16)" in line
    )
    assert "\n" not in line
    (run.folder / "recipe.yaml").write_text(whole)
    file = run.newest_checkpoint() / "model.safetensors"
    weights = load_file(file)
    del weights["norm.weight"]
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"norm\.weight is absent there and \(32,\) here\. "):
        HybridLM.from_run(run.folder)
    file.write_bytes(b"half of a file")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not readable"):
        HybridLM.from_run(run.folder)


def test_what_a_resume_changes_is_printed_and_kept_by_step(tiny_recipe):
    pretrain(Recipe.load(tiny_recipe, [SHORT]), Console(quiet=True))
    out = io.StringIO()
    given = ["optim.lr=0.001", "train.checkpoint.every=3", "train.valid_batches=1"]
    run = pretrain(Recipe.load(tiny_recipe, given), Console(file=out, width=300))
    assert sorted(line for line in out.getvalue().splitlines() if line.startswith("changed")) == [
        "changed from step 2 on: optim.lr was 0.003, is 0.001",
        "changed from step 2 on: train.checkpoint.every was 2, is 3",
        "changed from step 2 on: train.steps was 2, is 8",
        "changed from step 2 on: train.valid_batches was unset, is 1",
    ]
    kept = [json.loads(line) for line in (run.folder / "changes.jsonl").read_text().splitlines()]
    assert sorted((one["step"], one["key"], one["before"], one["after"]) for one in kept) == [
        (2, "optim.lr", 0.003, 0.001),
        (2, "train.checkpoint.every", 2, 3),
        (2, "train.steps", 2, 8),
        (2, "train.valid_batches", "unset", 1),
    ]
    assert Recipe.load(run.folder / "recipe.yaml").optim.lr == 0.001


def test_a_run_that_trains_nothing_writes_neither_recipe_nor_log(tiny_recipe, console):
    run = pretrain(Recipe.load(tiny_recipe), console)
    before = files(run.folder)
    out = io.StringIO()
    pretrain(Recipe.load(tiny_recipe, ["optim.lr=0.5"]), Console(file=out, width=300))
    after = files(run.folder)
    assert {name for name in after if after[name] != before.get(name)} == {"plots/loss.png"}
    assert f"{run.folder}: nothing to train, at step 8 already" in out.getvalue()


def test_an_unchanged_resume_notes_no_change(tiny_recipe, console):
    recipe = Recipe.load(tiny_recipe, [SHORT])
    trained = pretrain(recipe, console)
    (trained.checkpoints / "step-000002").rename(trained.checkpoints / "step-000001")
    state = trained.checkpoints / "step-000001" / "state.json"
    state.write_text(state.read_text().replace('"step": 2', '"step": 1'))
    assert not (pretrain(recipe, console).folder / "changes.jsonl").exists()


def test_two_runs_in_one_folder_are_refused_with_the_holders_name(tiny_recipe, console):
    recipe = Recipe.load(tiny_recipe)
    with held(recipe.run_folder()):
        before = files(recipe.run_folder())
        with pytest.raises(ConfigError) as error:
            pretrain(recipe, console)
        assert files(recipe.run_folder()) == before
    assert str(error.value) == (
        f"run {str(recipe.run_folder())!r}: process {os.getpid()} on {socket.gethostname()} is training in it; "
        "wait for its end, or give this run a folder of its own with train.out"
    )
    assert not recipe.run_folder().exists()
    pretrain(recipe, console)  # free again


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from hybridlm.lm.train.lock import held\n"
        "with held(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert json.loads((tmp_path / ".lock.json").read_text())["host"] == socket.gethostname()
    with held(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_run_folder_that_is_a_file_is_one_line(tiny_recipe, console, tmp_path, inside):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"cannot be a run folder: (File exists|Not a directory)"):
        pretrain(Recipe.load(tiny_recipe, [f"train.out={tmp_path / 'file' / inside}"]), console)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_last_step_is_saved_before_it_is_measured(tiny_recipe, console, monkeypatch):
    recipe = Recipe.load(tiny_recipe)

    def fail(*_):
        raise RuntimeError("a measurement that fails")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="that fails"):
        patch.setattr(Trainer, "_score", lambda self, *_: fail() if self.step == 8 else {"loss": 1, "bits_per_byte": 1})
        pretrain(recipe, console)
    run = Run(recipe.run_folder())
    assert run.newest_checkpoint().name == "step-000008"
    assert [r["step"] for r in run.metrics() if r["kind"] == "valid/held_out"] == [4]
    pretrain(recipe, console)  # what it owes is made up for, and nothing else
    assert [r["step"] for r in run.metrics() if r["kind"] == "valid/held_out"] == [4, 8]
    assert [r["step"] for r in run.metrics() if r["kind"] == "train"] == list(range(1, 9))
