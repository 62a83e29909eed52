"""The loop end to end on a tiny corpus: it learns, it logs, and interruption changes nothing."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from hybridlm.lm.model.loading import load_run
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run
from hybridlm.tools.pretrain import pretrain


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """Every logged loss by kind and step."""
    values = {}
    for record in Run(folder).metrics():
        for key, value in record.items():
            if key == "loss" or key.endswith("/loss"):
                values[record["kind"], record["step"]] = value
    return values


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


def test_training_learns_and_leaves_a_complete_run_folder(tiny_recipe, console):
    recipe = Recipe.load(tiny_recipe, ["train.steps=30", "optim.lr=0.01"])
    run = pretrain(recipe, console)
    logged = losses(run.folder)
    assert logged["train", 30] < logged["train", 1] - 0.5
    assert ("valid/held_out", 28) in logged and ("valid/held_out", 30) in logged
    assert run.recipe == recipe
    for name in ("recipe.yaml", "code.json", "metrics.jsonl", "tokenizer", "tensorboard", "plots/loss.png"):
        assert (run.folder / name).exists(), name
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step-000028", "step-000030"]
    assert load_run(run).training is False


def test_a_finished_run_is_not_trained_again(tiny_recipe, console):
    recipe = Recipe.load(tiny_recipe)
    before = losses(pretrain(recipe, console).folder)
    assert losses(pretrain(recipe, console).folder) == before


def test_a_longer_run_resumes_and_equals_an_uninterrupted_one(tiny_recipe, console):
    schedule = "optim.schedule={kind: constant, warmup: 0}"
    whole = pretrain(Recipe.load(tiny_recipe, ["name=whole", schedule]), console)
    pretrain(Recipe.load(tiny_recipe, ["name=parts", schedule, "train.steps=3"]), console)
    parts = pretrain(Recipe.load(tiny_recipe, ["name=parts", schedule]), console)
    expected = losses(whole.folder)
    got = {key: value for key, value in losses(parts.folder).items() if key in expected}
    assert got == expected


def test_micro_batches_do_not_change_the_loss(tiny_recipe, console):
    one = pretrain(Recipe.load(tiny_recipe, ["name=one", "train.micro_batch=4"]), console)
    four = pretrain(Recipe.load(tiny_recipe, ["name=four", "train.micro_batch=1"]), console)
    a, b = losses(one.folder), losses(four.folder)
    assert a.keys() == b.keys()
    assert all(abs(a[key] - b[key]) < 2e-4 for key in a)


@pytest.mark.slow
def test_killed_at_random_moments_the_run_ends_with_the_same_losses(tiny_recipe, console):
    steps = ["train.steps=40", "train.checkpoint.every=1"]
    expected = losses(pretrain(Recipe.load(tiny_recipe, [*steps, "name=whole"]), console).folder)
    command = [sys.executable, "-m", "hybridlm", "train", str(tiny_recipe), *steps, "name=killed"]
    folder = Recipe.load(tiny_recipe, ["name=killed"]).run_folder()
    rng = random.Random(time.time_ns())
    kills = 0
    while kills < 6:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = len(list((folder / "checkpoints").glob("step-*"))) if folder.exists() else 0
        while process.poll() is None and begun == 0 and not list((folder / "checkpoints").glob("step-*")):
            time.sleep(0.05)
        try:
            process.wait(rng.uniform(0.0, 3.0) + (6.0 if begun else 0.0))
            break  # it got to the end before the kill
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert kills > 0
    assert losses(folder) == expected
