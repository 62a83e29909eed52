"""A study of a tiny grid: what is run, skipped, tried again and tabled."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from hybridlm.lm.parts.errors import ConfigError, UserError
from hybridlm.lm.run import Run
from hybridlm.tools import study as room
from hybridlm.tools.study_tables import by_mixer_and_ratio

TRAINED = """
import json, pathlib, shutil, sys
out, template = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
with (template / "started").open("a") as file:
    file.write(out.name + "\\n")
if (template / f"break-{out.name}").exists():
    print("some lines\\nout of memory\\n")
    sys.exit(3)
out.mkdir(parents=True, exist_ok=True)
shutil.copy(template / f"{out.name}.yaml", out / "recipe.yaml")
steps = [{"kind": "train", "step": i + 1, "seconds": s} for i, s in enumerate([3.0, 0.5, 0.5])]
valid = {"kind": "valid/held_out", "step": 3, "held_out/loss": 5.0, "held_out/bits_per_byte": 1.25}
(out / "metrics.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in [*steps, valid]))
"""


@pytest.fixture
def grid(tiny_recipe: Path) -> Path:
    """The tiny recipe with two variants: gated_deltanet-pure and transformer."""
    tree = yaml.safe_load(tiny_recipe.read_text())
    tree["grid"] = {
        "mixers": {"gated_deltanet": []},
        "ratios": {"pure": {"linear": 1}},
        "others": {"transformer": ["model.pattern=[attention]"]},
    }
    tiny_recipe.write_text(yaml.safe_dump(tree))
    return tiny_recipe


@pytest.fixture
def pretended(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Variants are not trained but write made-up records. Returns the folder that steers them and says who started."""
    template = tmp_path / "template"
    template.mkdir()

    def command(job: room.Job) -> list[str]:
        (template / f"{job.folder.name}.yaml").write_text(job.recipe.to_yaml())
        return [sys.executable, "-c", TRAINED, str(job.folder), str(template)]

    monkeypatch.setattr(room, "command", command)
    monkeypatch.setattr(room, "prepare", lambda recipe: None)
    return template


def run(recipe: Path, out: Path, only: str | None = None, overrides: tuple[str, ...] = ()) -> str:
    console = Console(file=io.StringIO(), width=150)
    room.study(str(recipe), list(overrides), 2, only, out, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def started(template: Path) -> list[str]:
    """Who has started since the last call."""
    path = template / "started"
    names = sorted(path.read_text().split()) if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_results_of_every_variant(grid, pretended, tmp_path):
    printed = run(grid, tmp_path / "out")
    assert started(pretended) == ["gated_deltanet-pure", "transformer"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"] == f"hybridlm bench study {grid} --jobs 2"
    linear, full = results["rows"]
    assert (linear["mixer"], linear["ratio"], full["mixer"]) == ("gated_deltanet", "pure", None)
    assert full["valid"] == {"held_out": {"loss": 5.0, "bits_per_byte": 1.25, "step": 3}}
    assert full["tokens_per_second"] == 4 * 64 / 0.5  # of the median step, not of the first
    assert (full["train_seconds"], full["tokens"]) == (4.0, 8 * 4 * 64)
    assert full["state_at_context"] * 2**20 == full["state_at_1m"] * 64  # two layers of attention
    assert linear["state_at_context"] == linear["state_at_1m"] > 0
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| gated_deltanet | 1.250 |  |\n| transformer |  | 1.250 |\n" in table
    assert results["command"] in table and results["hardware"] in table
    assert "bits per byte on held_out" in printed


def test_finished_variants_are_not_run_again(grid, pretended, tmp_path):
    run(grid, tmp_path / "out", only="transf*")
    assert started(pretended) == ["transformer"]
    printed = run(grid, tmp_path / "out")
    assert started(pretended) == ["gated_deltanet-pure"]
    assert "2 variants, 1 finished already" in printed
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == 2
    run(grid, tmp_path / "out")
    assert started(pretended) == []


def test_a_failure_is_told_at_the_end_and_stops_nobody(grid, pretended, tmp_path):
    (pretended / "break-gated_deltanet-pure").touch()
    with pytest.raises(UserError) as error:
        run(grid, tmp_path / "out")
    log = tmp_path / "out" / "gated_deltanet-pure.log"
    message = (
        f"study: 1 of 2 variants failed; the same command tries again\n  gated_deltanet-pure: out of memory ({log})"
    )
    assert str(error.value) == message
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["transformer"]
    (pretended / "break-gated_deltanet-pure").unlink()
    started(pretended)
    run(grid, tmp_path / "out")
    assert started(pretended) == ["gated_deltanet-pure"]


def test_a_result_of_another_recipe_is_not_taken(grid, pretended, tmp_path):
    run(grid, tmp_path / "out")
    with pytest.raises(ConfigError) as error:
        run(grid, tmp_path / "out", overrides=("train.steps=9", "model.d_model=64"))
    assert str(error.value) == (
        f"{tmp_path}/out/gated_deltanet-pure: a run of another recipe lies there, it differs in model, train; "
        "give the study another folder with --out, or remove this one"
    )
    run(grid, tmp_path / "out", overrides=("description=words change no result",))


def test_the_table_leaves_gaps_where_nothing_has_ended():
    def row(variant: str, mixer: str | None, ratio: str | None, bits: float) -> dict:
        of = variant.removesuffix("-s0").removesuffix("-s1")
        return {"variant": variant, "of": of, "mixer": mixer, "ratio": ratio, "valid": {"x": {"bits_per_byte": bits}}}

    rows = [row("a-6to1", "a", "6to1", 1.0), row("b-pure", "b", "pure", 2.0), row("t", None, None, 3.0)]
    header, table = by_mixer_and_ratio(rows, "x")
    assert header == ["mixer", "6to1", "pure", "alone"]
    assert table == [["a", "1.000", "", ""], ["b", "", "2.000", ""], ["t", "", "", "3.000"]]
    rows = [row("a-pure-s0", "a", "pure", 1.0), row("a-pure-s1", "a", "pure", 1.5), row("t-s0", None, None, 3.0)]
    rows.append(row("t-s1", None, None, 4.0))
    header, table = by_mixer_and_ratio(rows, "x")
    assert table == [["a", "1.250 ± 0.354 (2 seeds)", ""], ["t", "", "3.500 ± 0.707 (2 seeds)"]]


@pytest.mark.slow
def test_a_killed_study_goes_on(grid, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hybridlm", "bench", "study", str(grid), "--out", str(out), "--jobs", "1"]
    stopped = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (out / "gated_deltanet-pure" / "checkpoints").exists():
        assert stopped.poll() is None
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 143
    assert not (out / "transformer").exists()
    subprocess.run(command, timeout=300, check=True)
    for name in ("gated_deltanet-pure", "transformer"):
        assert [r["step"] for r in Run(out / name).metrics() if r["kind"] == "train"] == list(range(1, 9))
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 2
