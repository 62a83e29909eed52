"""A run that is stopped: by a signal, or because none of its steps is applied any more."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hybridlm.lm.parts.errors import Interrupted, NaNError
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run, checkpoint_steps
from hybridlm.lm.train import signals
from hybridlm.lm.train.engine import Engine, StepResult
from hybridlm.lm.train.health import Health
from hybridlm.lm.train.loop import Trainer
from hybridlm.tests.train.pair import run_pair
from hybridlm.tests.train.test_loop import losses
from hybridlm.tools.pretrain import pretrain

CODES = pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


def at_step(monkeypatch, step: int, act) -> None:
    """Calls `act` in the middle of a step."""
    real = Engine.step

    def engine_step(self, lr):
        calls.append(lr)
        if len(calls) == step:
            act()
        return real(self, lr)

    calls: list[float] = []
    monkeypatch.setattr(Engine, "step", engine_step)


@CODES
def test_a_signal_saves_after_the_step_and_the_run_goes_on_the_same(tiny_recipe, console, monkeypatch, sent, code):
    schedule = "optim.schedule={kind: constant, warmup: 0}"
    expected = losses(pretrain(Recipe.load(tiny_recipe, ["name=whole", schedule]), console).folder)
    recipe = Recipe.load(tiny_recipe, ["name=parts", schedule])
    before = [signal.getsignal(one) for one in signals.SIGNALS]
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: (os.kill(os.getpid(), sent), time.sleep(0.2)))
        with pytest.raises(Interrupted) as error:
            pretrain(recipe, console)
    checkpoint = recipe.run_folder() / "checkpoints" / "step-000003"
    name = signal.Signals(sent).name
    assert error.value.code == code
    assert str(error.value) == (
        f"{name} after step 3: the newest checkpoint is {checkpoint}; the same command goes on from there"
    )
    assert [signal.getsignal(one) for one in signals.SIGNALS] == before
    assert checkpoint.is_dir()
    assert losses(pretrain(recipe, console).folder) == expected


def test_a_signal_after_the_last_step_is_not_lost(tiny_recipe, console, monkeypatch):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return {"loss": 1.0, "bits_per_byte": 1.0}

    monkeypatch.setattr(Trainer, "_score", interrupted)
    recipe = Recipe.load(tiny_recipe, ["train.valid_every=0"])
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, console)
    assert Run(recipe.run_folder()).newest_checkpoint().name == "step-000008"


SLEEP = """
import sys, time
from hybridlm.lm.train.signals import Signals
with Signals():
    print("ready", flush=True)
    time.sleep(60)
    time.sleep(60)
"""


def test_a_second_signal_ends_at_once_but_not_an_echo_of_the_first():
    process = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # as a launcher does that passes on what its group was sent
    time.sleep(0.5)
    assert process.poll() is None
    time.sleep(signals.TWICE)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said.splitlines() == [
        "hybridlm: SIGTERM: finishing this step, then saving; once more ends at once",
        "hybridlm: ended at once; nothing saved since the newest checkpoint",
    ]


def test_ranks_act_on_the_signal_of_any_of_them():
    assert signals.agreed([0.0, 0.0]) == 0
    assert signals.agreed([1.0, 0.0]) == signal.SIGTERM
    assert signals.agreed([0.0, 3.0]) == signal.SIGINT
    assert signals.agreed([1.0, 1.0]) == signal.SIGTERM


def test_skipped_steps_in_a_row_are_counted_and_an_applied_one_starts_anew():
    health = Health(3)
    for applied in (False, False, True, False, False):
        health.count(applied, 5.0)
        health.check(7, last=False, kept=str)
    assert not health.well
    health.check(8, last=True, kept=str)  # the loss is finite: so are the weights
    health.count(False, 5.0)
    with pytest.raises(
        NaNError, match=r"^step 8: the last 3 steps were skipped .*, and not saved; none is there\. Go on"
    ):
        health.check(8, last=False, kept=lambda: "none is there")
    health = Health(3)
    health.count(False, math.nan)
    health.check(7, last=False, kept=str)
    with pytest.raises(NaNError):
        health.check(8, last=True, kept=str)


def test_a_run_that_skips_ends_and_keeps_its_healthy_checkpoints(tiny_recipe, console, monkeypatch):
    """A weight becomes NaN after step 4: steps 5 to 7 are skipped, and 6 is not saved."""
    recipe = Recipe.load(tiny_recipe, ["train.steps=40", "train.max_skipped=3", "train.checkpoint.keep_last=1"])
    real = Trainer._train_step

    def broken(self):
        if self.step == 4:
            with torch.no_grad():
                self.engine._state.set_parameter(self.model.norm.weight, torch.full((32,), torch.nan))
        return real(self)

    with monkeypatch.context() as patch, pytest.raises(NaNError) as error:
        patch.setattr(Trainer, "_train_step", broken)
        pretrain(recipe, console)
    run = Run(recipe.run_folder())
    assert str(error.value) == (
        "step 7: the last 3 steps were skipped because their gradients are not finite, and not saved; the newest "
        f"checkpoint is {run.checkpoints / 'step-000004'}. Go on with a lower optim.lr, "
        "or look for a weight that is NaN"
    )
    assert list(checkpoint_steps(run.checkpoints)) == [4]


def test_a_run_whose_every_step_is_skipped_fails_though_it_is_short(tiny_recipe, console, monkeypatch):
    monkeypatch.setattr(Engine, "step", lambda self, lr: self._engine.step() or StepResult(math.inf, False))
    recipe = Recipe.load(tiny_recipe)
    with pytest.raises(NaNError, match=r"^step 8: the last 8 steps were skipped .* there is no checkpoint\."):
        pretrain(recipe, console)
    assert not Run(recipe.run_folder()).checkpoints.exists()


def test_a_last_step_that_is_skipped_by_itself_ends_the_run_and_drops_no_checkpoint(tiny_recipe, console, monkeypatch):
    real = Engine.step
    calls: list[float] = []

    def skip_last(self, lr):
        calls.append(lr)
        result = real(self, lr)
        return StepResult(math.inf, False) if len(calls) == 8 else result

    monkeypatch.setattr(Engine, "step", skip_last)
    run = pretrain(Recipe.load(tiny_recipe, ["train.checkpoint.keep_last=1"]), console)
    assert sorted(checkpoint_steps(run.checkpoints)) == [6, 8]


SIGNALLED = """
import os, signal, sys
from unittest import mock
from hybridlm.lm.train.engine import Engine
from hybridlm.tools.cli import main
real, calls = Engine.step, []
def step(self, lr):
    calls.append(lr)
    if len(calls) == 3 and self.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        import time; time.sleep(0.3)
    return real(self, lr)
sys.argv = ["hybridlm", "train", *sys.argv[1:]]
with mock.patch.object(Engine, "step", step):
    main()
"""


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_once_and_ends_both_with_its_code(tiny_recipe):
    first, second = run_pair("-c", SIGNALLED, str(tiny_recipe))
    assert (first.code, second.code) == (143, 143), (first, second)
    folder = Recipe.load(tiny_recipe).run_folder() / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step-000002", "step-000003"]
    assert first.line.startswith("hybridlm: SIGTERM after step 3: the newest checkpoint is ")
    assert "SIGTERM after step 3" not in second.error


@pytest.mark.slow
@CODES
def test_a_real_process_ends_with_the_signals_code_and_one_line(tiny_recipe, sent, code):
    command = [sys.executable, "-m", "hybridlm", "train", str(tiny_recipe), "train.steps=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder: Path = Recipe.load(tiny_recipe).run_folder() / "checkpoints"
    while process.poll() is None and not list(folder.glob("step-*")):
        time.sleep(0.05)
    process.send_signal(sent)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    newest = Run(folder.parent).newest_checkpoint()
    assert said.splitlines()[-1].endswith(f"the newest checkpoint is {newest}; the same command goes on from there")
    assert "Traceback" not in said
