"""lm-eval's command line on an exported folder and on a run."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

from hybridlm.eval.lm_eval_cli import RunHarness
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.hf import save_pretrained

from .conftest import PROSE


@pytest.fixture
def run(tmp_path, tokenizer):
    """The parts of a run folder that scoring reads."""
    recipe = Recipe.load("demo", ["model.vocab_size=340", "model.d_model=32", "model.n_layers=4", "model.context=64"])
    torch.manual_seed(0)
    model = HybridLM(recipe.model)
    step = tmp_path / "run" / "checkpoints" / "step-000007"
    step.mkdir(parents=True)
    weights = model.state_dict()
    del weights["lm_head.weight"]  # tied
    save_file(weights, step / "model.safetensors")
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    tokenizer.save(tmp_path / "run" / "tokenizer")
    save_pretrained(model, tmp_path / "hf", tokenizer=tokenizer)
    return tmp_path / "run"


def test_registered_beside_lm_evals_own(run):
    from lm_eval.api.registry import get_model

    assert get_model("hybridlm") is RunHarness and get_model("hf").__name__ == "HFLM"
    model = RunHarness.create_from_arg_string(f"run={run}", {"batch_size": "1", "device": "cpu"})
    assert (model.max_length, model.batch_tokens) == (64, 8192)
    model = RunHarness.create_from_arg_string(f"run={run},max_length=32", {"batch_size": 512, "device": "cpu"})
    assert (model.max_length, model.batch_tokens) == (32, 512 * 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["--model hf --model_args pretrained=hf,dtype=float32", "--model hybridlm --model_args run=run"]
)
def test_command_line(run, tmp_path, command):
    pytest.importorskip("accelerate", reason="lm-eval's hf adapter imports accelerate: pip install accelerate")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text[:40]}) + "\n" for text in PROSE[:4]))
    task = {
        "task": "three_choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["oak", "water", "305"],
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(yaml.safe_dump(task))
    line = f"run {command} --tasks three_choices --include_path tasks --device cpu --output_path out"
    subprocess.run([sys.executable, "-m", "hybridlm.eval.lm_eval_cli", *line.split()], cwd=tmp_path, check=True)
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert results["n-samples"]["three_choices"]["effective"] == 4
