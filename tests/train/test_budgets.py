"""A mixer whose budget shrinks over training is told how far that is: at every step, validation, and after a resume."""

import pytest
import torch
from rich.console import Console

from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.tools.pretrain import pretrain

SCHEDULE = "optim.schedule={kind: constant, warmup: 0}"


@pytest.fixture
def used(monkeypatch) -> list[tuple[float, bool]]:
    """Each forward of an attention that loses half of its output over training: what it was told, and if it trains."""
    found: list[tuple[float, bool]] = []

    class Shrinking(MIXERS["attention"]):
        done = 1.0

        def before_step(self, done):
            self.done = done

        def forward(self, x, sequences, state=None):
            found.append((self.done, self.training))
            mixed = super().forward(x, sequences, state)
            kept = torch.arange(x.shape[-1]) < x.shape[-1] * (1 - self.done / 2)
            return mixed._replace(y=mixed.y * kept)

    monkeypatch.setitem(MIXERS, "attention", Shrinking)
    return found


def train(recipe, *overrides):
    return pretrain(Recipe.load(recipe, ["train.micro_batch=4", SCHEDULE, *overrides]), Console(quiet=True))


def test_each_step_and_each_validation_knows_what_share_of_the_steps_is_done(tiny_recipe, used):
    train(tiny_recipe)
    assert [done for done, training in used if training] == [step / 8 for step in range(8)]
    assert {done for done, training in used if not training} == {0.5, 1.0}


def test_activation_checkpointing_runs_a_layer_again_with_the_same_budget(tiny_recipe, used):
    train(tiny_recipe, "train.activation_checkpointing=true")
    assert [done for done, training in used if training] == [step / 8 for step in range(8) for _ in range(2)]


def _stop_at(last: int, step: int) -> None:
    if step == last:
        raise KeyboardInterrupt


def test_a_resumed_run_goes_on_with_the_budget_of_its_step(tiny_recipe, used, monkeypatch):
    losses = {record["step"]: record["loss"] for record in train(tiny_recipe).metrics() if record["kind"] == "train"}

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hybridlm.lm.train.telemetry.Telemetry.train_step", lambda self, step, *_: _stop_at(5, step))
        train(tiny_recipe, "name=parts")
    run = train(tiny_recipe, "name=parts")
    assert {r["step"]: r["loss"] for r in run.metrics() if r["kind"] == "train" and r["step"] > 4} == {
        step: loss for step, loss in losses.items() if step > 4
    }


def test_what_a_run_past_its_steps_owes_is_measured_with_the_last_budget(tiny_recipe, used):
    train(tiny_recipe, "train.steps=4")
    used.clear()
    source = Recipe.load(tiny_recipe).data.valid["held_out"][0].model_dump_json()
    train(tiny_recipe, "train.steps=2", f"data.valid.added=[{source}]")
    assert set(used) == {(1.0, False)}
