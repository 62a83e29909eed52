"""What a run writes while it trains."""

import json
import math
import shutil
import subprocess

import pytest
from rich.console import Console

from hybridlm.lm.data.files import append_records
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run, _commit, checkpoint_steps
from hybridlm.lm.train.telemetry import Telemetry, log_measured
from hybridlm.tools.pretrain import pretrain
from hybridlm.tools.records import rate, tokens_at


def test_records_are_lines_and_none_joins_a_broken_one(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    run = Run(tmp_path)
    for loss in (1.0, 2.0):
        log_measured(run, round(loss), "some", {"loss": loss})
    lines = run.metrics_file.read_text().splitlines()
    assert [json.loads(line)["some/loss"] for line in lines] == [1.0, 2.0]
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "tra')
    log_measured(run, 3, "some", {"loss": 3.0})
    assert [record["some/loss"] for record in run.metrics()] == [1.0, 2.0, 3.0]


def test_numbers_that_are_not_finite_are_null_in_plain_json_and_nan_when_read(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    run = Run(tmp_path)
    log_measured(run, 1, "some", {"loss": math.inf, "nats": 2.0})
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "train", "step": 2, "norm": Infinity, "loss": NaN}\n')  # as older versions wrote it
    line = run.metrics_file.read_text().splitlines()[0]
    assert json.loads(line, parse_constant=lambda word: pytest.fail(word))["some/loss"] is None
    first, old = run.metrics()
    assert math.isnan(first["some/loss"]) and first["some/nats"] == 2.0
    assert old["norm"] == math.inf and math.isnan(old["loss"])


def test_steps_that_a_resume_went_back_before_are_gone_unless_logged_again(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    run = Run(tmp_path)
    append_records(run.metrics_file, [{"kind": "train", "step": step, "loss": 1.0} for step in range(1, 6)])
    append_records(run.metrics_file, [{"kind": "resumed", "step": 2}, {"kind": "train", "step": 3, "loss": 2.0}])
    assert [(record["step"], record["loss"]) for record in run.metrics()] == [(1, 1.0), (2, 1.0), (3, 2.0)]


@pytest.mark.parametrize("tracked", [True, False])
def test_the_commit_is_that_of_the_repository_that_tracks_the_package(tmp_path, monkeypatch, tracked):
    file = tmp_path / "site" / "hybridlm" / "run.py"
    file.parent.mkdir(parents=True)
    file.touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", *(["site"] if tracked else [])], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert _commit(file) == (head.strip() if tracked else "")
    monkeypatch.setenv("PATH", "")
    assert _commit(file) == ""


def test_tokens_and_rate_come_from_the_records_whatever_the_batch_was():
    steps = [{"step": step, "tokens": tokens, "seconds": 0.5} for step, tokens in ((1, 64), (2, 128), (3, 384))]
    assert [tokens_at(steps, step) for step in (0, 1, 2, 3, 4)] == [0, 64, 128, 384, 384]
    assert rate(steps) == (384 - 64) / 1.0
    assert rate(steps[:1]) == 64 / 0.5


def test_a_resume_with_another_batch_counts_tokens_on_and_purges_what_it_goes_back_before(tiny_recipe, boards_in_order):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = Console(quiet=True)
    pretrain(Recipe.load(tiny_recipe, ["train.steps=3"]), out)
    run = pretrain(Recipe.load(tiny_recipe, ["train.steps=5", "train.batch=6"]), out)
    assert [r["tokens"] // 64 for r in run.metrics() if r["kind"] == "train"] == [4, 8, 12, 18, 24]
    shutil.rmtree(run.checkpoints / "step-000005")  # back to an older one, with another rate
    pretrain(Recipe.load(tiny_recipe, ["train.steps=5", "train.batch=2", "optim.lr=0.001"]), out)
    newest = max(checkpoint_steps(run.checkpoints))
    assert newest == 5
    steps = [r for r in run.metrics() if r["kind"] == "train"]
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5]
    board = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    shown = board.Scalars("train/lr")
    assert [event.step for event in shown] == [1, 2, 3, 4, 5]
    assert [event.value for event in shown] == pytest.approx([r["lr"] for r in steps])


def test_the_use_of_heads_is_logged_where_a_line_is_printed_however_the_batch_is_cut(tiny_recipe, boards_in_order):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    routed = ["model.ratio=null", "model.pattern=[moh]", "model.moh={n_heads: 4, heads: {shared: 1, active: 2}}"]
    steps = ["train.steps=5", "train.batch=4", "train.log_every=2", *routed]
    run, cut = (
        pretrain(Recipe.load(tiny_recipe, [*steps, f"name=by-{n}", f"train.micro_batch={n}"]), Console(quiet=True))
        for n in (4, 1)
    )
    records, others = ([r for r in of.metrics() if r["kind"] == "train"] for of in (run, cut))
    assert [r["step"] for r in records if "layer1/activation" in r] == [1, 2, 4, 5]
    for record in records:
        assert {"balance", "layer1/balance", "layer1/effective_heads", "layer1/router_entropy"} <= record.keys()
    first = records[0]
    assert first["layer0/activation"] == [1.0, 1.0, 0.0, 0.0]  # a new router: the first of equal ranks
    assert first["balance"] == pytest.approx(0.01 * 1, rel=1e-5)  # one routed head in use
    assert all(sum(r["layer1/activation"]) == pytest.approx(2) for r in records if "layer1/activation" in r)
    for record, other in zip(records, others, strict=True):
        assert record["balance"] == pytest.approx(other["balance"], rel=1e-3)
        assert record["loss"] == pytest.approx(other["loss"], abs=2e-4)
    board = EventAccumulator(str(run.folder / "tensorboard"), {"histograms": 0}).Reload()  # keep all
    assert [event.step for event in board.Histograms("train/layer1/activation")] == [1, 2, 4, 5]
    assert [event.step for event in board.Scalars("train/layer1/effective_heads")] == [1, 2, 3, 4, 5]


def test_lists_with_numbers_that_are_not_finite_end_no_run(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    telemetry = object.__new__(Telemetry)
    telemetry.main, telemetry.pending = True, []
    with SummaryWriter(str(tmp_path)) as telemetry.board:
        telemetry._keep("train", 1, {"layer0/query_norm": [1.0, math.inf], "layer1/query_norm": [math.nan]})
    assert telemetry.pending[0]["layer0/query_norm"] == [1.0, math.inf]
