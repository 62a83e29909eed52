"""The command line: what a user sees when all is well, and one line and a non-zero exit code when it is not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridlm.tools import cli

runner = CliRunner()
VERBS = (
    *("fetch", "prepare", "train", "eval", "synthetic", "mqar", "convert", "export"),
    *("generate", "report", "recipes", "doctor", "bench"),
)


def run_main(*args: str, monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and stderr of `hybridlm ARGS`."""
    monkeypatch.setattr(sys, "argv", ["hybridlm", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0), capsys.readouterr().err


def test_help_lists_every_verb_and_imports_no_torch():
    code = "import sys; from hybridlm.tools import cli; sys.argv = ['hybridlm', '--help']\n"
    code += "try: cli.main()\nexcept SystemExit: print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    for verb in VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    result = runner.invoke(cli.app, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_mqar_and_synthetic_are_one_command(monkeypatch):
    asked = []
    monkeypatch.setattr("hybridlm.tools.synthetic.run_synthetic", lambda *given: asked.append(given[:-1]))
    for verb in ("synthetic", "mqar"):
        given = [verb, "mqar/mini", "optim.epochs=1", "--jobs", "1", "--only", "gla*", "--out", "there"]
        assert runner.invoke(cli.app, given).exit_code == 0
    assert asked == [("mqar/mini", ["optim.epochs=1"], 1, "gla*", Path("there"))] * 2


def test_only_a_launcher_makes_this_one_of_several_processes(monkeypatch):
    """A LOCAL_RANK by itself has other libraries look for the rest of a group that is not there."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("LOCAL_RANK")
    assert runner.invoke(cli.app, ["recipes", "study/mini", "--only", "hgrn-pure"]).exit_code == 0
    assert "LOCAL_RANK" not in os.environ
    assert runner.invoke(cli.app, ["--local_rank=1", "recipes", "study/mini", "--only", "hgrn-pure"]).exit_code == 0
    assert os.environ["LOCAL_RANK"] == "1"


def test_convert_has_an_honest_name_beside_its_first(tmp_path, monkeypatch, capsys):
    said = {
        run_main("convert", name, str(tmp_path), str(tmp_path / "dst"), monkeypatch=monkeypatch, capsys=capsys)
        for name in ("checkpoint", "llama")
    }
    fix = "give a folder with config.json and safetensors, or a .gguf file"
    assert said == {(1, f"hybridlm: {tmp_path}: holds no config.json; {fix}\n")}


def test_capacity_is_a_table():
    result = runner.invoke(
        cli.app, ["bench", "capacity", "--key-dim", "8", "--labels", "4", "--trials", "2"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "delta rule" in result.output and "least squares" in result.output


def test_random_features_are_a_table():
    sizes = ["--heads", "4", "--dim", "3", "--keys", "4", "--seeds", "1"]
    result = runner.invoke(cli.app, ["bench", "random-features", *sizes], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "biased softmax" in result.output and "heads=4, dim=3, n_keys=4" in result.output


def test_an_impossible_decay_is_one_line(monkeypatch, capsys):
    code, message = run_main("bench", "capacity", "--decay", "2", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, message) == (1, "hybridlm: decay: 2 is not in (0, 1); use 0.99, for example\n")


def test_a_batch_budget_is_auto_or_a_number(tmp_path):
    result = runner.invoke(cli.app, ["eval", str(tmp_path), "--batch-tokens", "many"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "'many' is neither auto nor a whole number above 0" in " ".join(result.output.split())


def test_dry_run_prints_the_plan_and_trains_nothing(tiny_recipe):
    result = runner.invoke(cli.app, ["train", str(tiny_recipe), "--dry-run", "train.steps=7"])
    assert result.exit_code == 0, result.output
    assert "FLOPs per token, training" in result.output
    assert f"{7 * 4 * 64:,}" in result.output  # tokens of the whole run
    assert not (tiny_recipe.parent / "runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=5", "train.step: unknown key 'step' in train; did you mean 'steps'?"),
        (
            "model.attention.n_head=2",
            "model.attention.n_head: unknown key 'n_head' in model.attention; did you mean 'n_heads'?",
        ),
        ("train.steps", "override 'train.steps': expected KEY=VALUE, e.g. train.steps=100"),
        ("train.steps=0", "train.steps: Input should be greater than 0, got 0"),
        (
            "model.ratio={gated_deltanet: 3, attention: 1}",
            "model: ratio: a period of 4 layers does not divide n_layers=2; use n_layers=4 or 8, "
            "spell the layers out with layers:, or cut the last period with remainder: cut",
        ),
        (
            "model.ratio={gated_deltanet: 0, attention: 1}",
            "model.ratio.gated_deltanet: Input should be greater than or equal to 1, got 0",
        ),
        ("model.pattern=[atention]", "model: layers: unknown mixer 'atention'; did you mean 'attention'?"),
    ],
)
def test_bad_recipes_are_one_line_that_says_what_to_change(override, message, tiny_recipe, monkeypatch, capsys):
    code, err = run_main("train", str(tiny_recipe), override, "--dry-run", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    prefix = "hybridlm: " if override.startswith("train.steps") and "=" not in override else "hybridlm: tiny.yaml: "
    assert err == f"{prefix}{message}\n"


def test_an_unknown_recipe_names_the_nearest(monkeypatch, capsys):
    code, err = run_main("train", "dem", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (1, "hybridlm: recipe 'dem': no such file and no recipe of that name; did you mean 'demo'?\n")


def test_a_folder_that_is_no_run(tmp_path, monkeypatch, capsys):
    code, err = run_main("generate", str(tmp_path), "--prompt", "x", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert err == f"hybridlm: run {str(tmp_path)!r}: no recipe.yaml there; give a run folder such as runs/demo\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def fill(*_args, **_how):
        with open("/dev/full", "w") as full:
            full.write("x")

    monkeypatch.setattr("hybridlm.tools.report.report_runs", fill)
    code, err = run_main("report", "runs/none", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (1, "hybridlm: disk: No space left on device; free some and repeat\n")


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; nothing was made"),
        (signal.SIGTERM, 143, "terminated; nothing was made"),
    ],
)
def test_a_signal_is_one_line_that_says_what_is_kept(monkeypatch, capsys, sent, code, said):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("hybridlm.tools.convert.convert_checkpoint", lambda *_: signal.raise_signal(sent))
    try:
        arguments = ("convert", "checkpoint", "a", "b")
        assert run_main(*arguments, monkeypatch=monkeypatch, capsys=capsys) == (code, f"hybridlm: {said}\n")
        monkeypatch.setattr("hybridlm.tools.report.report_runs", lambda *_: signal.raise_signal(sent))
        line = f"hybridlm: {said.partition(';')[0]}\n"
        assert run_main("report", "x", monkeypatch=monkeypatch, capsys=capsys) == (code, line)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_recipes_lists_what_comes_with_the_package():
    result = runner.invoke(cli.app, ["recipes"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "demo" in result.output and "3 x gated_deltanet, attention" in result.output


WRONG = {
    "train demo modle.d_model=64": "unknown key 'modle' in the recipe; did you mean 'model'?",
    "train demo --dry-run model.pattern=[atention]": "unknown mixer 'atention'; did you mean 'attention'?",
    "train demo optim.lr=fast": "optim.lr: Input should be a valid number",
    "prepare demoo": "did you mean 'demo'?",
    "eval nowhere": "run 'nowhere': no recipe.yaml there",
    "generate nowhere --prompt x": "run 'nowhere': no recipe.yaml there",
    "export nowhere there": "run 'nowhere': no recipe.yaml there",
    "recipes demoo": "did you mean 'demo'?",
    "synthetic mqar/t1-smokey": "did you mean 'mqar/t1-smoke'?",
    "bench study study/mini model.d_model": "expected KEY=VALUE",
}


def test_errors_about_arguments_come_before_torch_is_imported(tmp_path):
    """All of them in one process: torch takes seconds to import."""
    code = (
        "import json, sys; from hybridlm.tools import cli\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['hybridlm', *line.split()]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert end.code == 1, (line, end.code)\n"
        "    else: raise AssertionError(line)\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    command = [sys.executable, "-c", code, json.dumps(list(WRONG))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stderr.splitlines()
    for message in WRONG.values():
        assert any(message in line for line in lines), (message, lines)


def test_every_recipe_is_validated_without_torch_within_a_second():
    code = (
        "import sys, time; from hybridlm.lm import Recipe\n"
        "for name in ('demo', 'study/340m', 'qwen3-5', 'olmo-hybrid', 'sotu-hour'): Recipe.load(name)\n"
        "print('torch' in sys.modules, time.process_time())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch_is_there, seconds = run.stdout.split()
    assert torch_is_there == "False" and float(seconds) < 1
