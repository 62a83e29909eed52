"""What can be done with a run's folder: reports, text, yardsticks, going on from elsewhere."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run
from hybridlm.tools import cli
from hybridlm.tools.pretrain import pretrain
from hybridlm.tools.records import valid_scores
from hybridlm.tools.sample import stream

runner = CliRunner()


@pytest.fixture
def trained(tiny_recipe: Path) -> tuple[Run, str]:
    """A finished tiny run and what it printed."""
    console = Console(file=io.StringIO(), width=200)
    run = pretrain(Recipe.load(tiny_recipe, ["eval.prompt=the of", "eval.yardsticks=true"]), console)
    return run, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_ends_with_its_yardsticks_sample_and_plot(trained):
    run, printed = trained
    yardsticks = json.loads((run.folder / "yardsticks.json").read_text())["held_out"]
    assert set(yardsticks) == {"uniform", "unigram", "trigram"}
    loss = valid_scores(run)["held_out"]["loss"]
    for name, row in yardsticks.items():
        verdict = "beats" if loss < row["nats_per_token"] else "does not beat"
        assert f"tiny {verdict} {name} on held_out: {row['nats_per_token'] - loss:+.3f} nats per token" in printed
    assert "sample after 'the of'" in printed
    assert str(run.folder / "plots" / "loss.png") in printed


def test_validation_scores_every_token_but_the_first_of_each_document(trained):
    run, _ = trained
    score = valid_scores(run)["held_out"]
    yardstick = json.loads((run.folder / "yardsticks.json").read_text())["held_out"]["unigram"]
    # nats per token and bits per byte are tied by the same counts for the model and for the yardsticks
    ratio = yardstick["bits_per_byte"] / yardstick["nats_per_token"]
    assert score["bits_per_byte"] / score["loss"] == pytest.approx(ratio, rel=1e-6)


def test_the_stream_writes_the_whole_continuation(trained):
    run, _ = trained
    pieces: list[str] = []
    stream(run, "the of", 20, temperature=0.0, top_p=1.0, seed=0, write=pieces.append)
    again: list[str] = []
    stream(run.folder, "the of", 20, temperature=0.0, top_p=1.0, seed=7, write=again.append)
    assert pieces[0] == "the of" and len("".join(pieces)) > len("the of")
    assert "".join(pieces) == "".join(again)


def test_report_compares_runs(trained, tmp_path):
    run, _ = trained
    other = shutil.copytree(run.folder, tmp_path / "other")
    result = runner.invoke(cli.app, ["report", str(run.folder), str(other)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "tiny" in result.output and "other" in result.output and "held_out" in result.output
    assert (run.folder / "report.html").stat().st_size > 10_000


def test_report_of_a_run_without_records_says_so(trained, tmp_path, monkeypatch, capsys):
    run, _ = trained
    empty = shutil.copytree(run.folder, tmp_path / "empty")
    (empty / "metrics.jsonl").unlink()
    monkeypatch.setattr("sys.argv", ["hybridlm", "report", str(empty)])
    with pytest.raises(SystemExit):
        cli.main()
    message = f"hybridlm: run {str(empty)!r}: nothing logged yet; train it first: hybridlm train {empty}\n"
    assert capsys.readouterr().err == message


def test_a_moved_run_goes_on_where_it_lies(trained, tmp_path, monkeypatch):
    run, _ = trained
    moved = shutil.move(run.folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(moved), "train.steps=10", "eval.yardsticks=false"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert Run(moved).metrics()[-1]["step"] == 10
    assert not run.folder.exists()


def test_a_broken_last_line_of_the_metrics_is_skipped(trained):
    run, _ = trained
    before = run.metrics()
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "train", "step": 9, "lo')
    assert run.metrics() == before
