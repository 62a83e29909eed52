"""One command line under each launcher: alone, torchrun, deepspeed."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run
from hybridlm.tools.pretrain import pretrain

LAUNCHERS = {
    "alone": [sys.executable, "-m", "hybridlm"],
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "hybridlm"),
    ],
    "deepspeed": [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2", "--module", "hybridlm"],
}


def train(launcher: str, recipe: Path, *overrides: str) -> Run:
    """Train in processes of their own; fails with what they printed."""
    command = [*LAUNCHERS[launcher], "train", str(recipe), f"name={launcher}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Run(Recipe.load(recipe, [f"name={launcher}"]).run_folder())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_processes_log_the_losses_of_one(launcher, tiny_recipe):
    one, two = train("alone", tiny_recipe), train(launcher, tiny_recipe)
    expected = {(r["kind"], r["step"]): r for r in one.metrics()}
    got = {(r["kind"], r["step"]): r for r in two.metrics()}
    assert got.keys() == expected.keys()
    for key, record in got.items():
        name = "loss" if key[0] == "train" else "held_out/loss"
        assert record[name] == pytest.approx(expected[key][name], abs=1e-4), key


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(tiny_recipe):
    schedule = "optim.schedule={kind: constant, warmup: 0}"
    whole = train("alone", tiny_recipe, schedule)
    train("torchrun", tiny_recipe, schedule, "train.steps=4")
    command = [*LAUNCHERS["alone"], "train", str(tiny_recipe), "name=torchrun", schedule]
    subprocess.run(command, check=True, capture_output=True)
    resumed = {r["step"]: r["loss"] for r in Run(whole.folder.parent / "torchrun").metrics() if r["kind"] == "train"}
    for record in whole.metrics():
        if record["kind"] == "train":
            assert resumed[record["step"]] == pytest.approx(record["loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_processes_tune_as_one_does(stage, tiny_recipe):
    """Begun with another run's weights, beside a teacher, a part of the model frozen at first and another for good."""
    first = pretrain(Recipe.load(tiny_recipe, ["name=first", "train.steps=2"]), Console(quiet=True))
    folder = first.folder
    tuned = [
        f"init={folder}",
        f"distill={{teacher: {folder}, weight: 0.7, temperature: 2.0, hidden: 0.5, layers: all}}",
        "freeze=[{match: [embed*]}, {match: ['blocks.0.*'], until: 3}]",
        f"train.zero_stage={stage}",
        "optim.lr=0.03",
    ]
    one, two = train("alone", tiny_recipe, *tuned), train("torchrun", tiny_recipe, *tuned)
    expected = {r["step"]: r for r in one.metrics() if r["kind"] == "train"}
    for record in two.metrics():
        if record["kind"] == "train":
            for name in ("loss", "kl", "hidden", "norm"):
                assert record[name] == pytest.approx(expected[record["step"]][name], rel=1e-3, abs=1e-5), name
    assert expected[8]["kl"] > 1e-4
