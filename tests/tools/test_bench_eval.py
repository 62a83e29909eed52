import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from hybridlm.eval.forward.scoring import Window
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.data.tokenizer import train_tokenizer
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tools import bench_eval as module
from hybridlm.tools.bench_eval import bench_eval, upper_bound

PROSE = ["Question: how does one keep bread fresh? Answer: close the bag. Then leave it in the rain, again."] * 30


@pytest.fixture
def run(tmp_path):
    """A run folder with a random attention model, and a few made-up questions in its cache."""
    cache = tmp_path / "cache"
    (cache / "benchkit").mkdir(parents=True)
    questions = [
        {"goal": f"keep bread {i}", "choices": ["close the bag", "close the rain"], "labels": ["A", "B"], "answer": "A"}
        for i in range(6)
    ]
    (cache / "benchkit" / "piqa.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    tokenizer = train_tokenizer(PROSE, 300)
    sizes = ["model.n_layers=2", "model.d_model=32", f"model.vocab_size={tokenizer.vocab_size}", "model.context=256"]
    recipe = Recipe.load("demo", overrides=[*sizes, "model.pattern=[attention]", f"data.cache={cache}"])
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    tokenizer.save(folder / "tokenizer")
    torch.manual_seed(0)
    weights = HybridLM(recipe.model).state_dict()
    if recipe.model.tie_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, checkpoint / "model.safetensors")
    return folder


def measure(run, num_fewshot=0, peer=False):
    shown = io.StringIO()
    threads = torch.get_num_threads()
    try:
        found = bench_eval(run, ["piqa"], 4, num_fewshot, 1, peer, Console(file=shown, width=150))
    finally:
        torch.set_num_threads(threads)
    return found["results"], shown.getvalue()


def test_sides_count_what_they_compute_and_agree(run):
    [result], shown = measure(run)
    shared, alone = result["sides"]
    assert (shared["side"], alone["side"]) == ("shared prefixes", "not shared")
    assert shared["tokens"] < alone["tokens"] <= shared["tokens"] * result["bound"]["tokens"]
    assert shared["logits"] < alone["logits"]
    assert result["requests"] == 8 and result["largest_difference"]["not shared"] < 1e-4
    assert "piqa, zero-shot: 8 requests" in shown and f"{result['speedup_over']['not shared']:.2f}x" in shown


def test_few_shot_is_measured_with_fixed_and_with_drawn_examples(run):
    [fixed, drawn], _ = measure(run, num_fewshot=2)
    assert (fixed["shots"], drawn["shots"]) == ("2 shots, fixed", "2 shots, drawn")
    assert min(fixed["bound"]["tokens"], drawn["bound"]["tokens"]) > 2


@pytest.mark.slow
def test_the_peer_reads_the_same_weights(run):
    pytest.importorskip("accelerate")
    [result], _ = measure(run, peer=True)
    assert {side["side"] for side in result["sides"]} > {"lm-eval hf, batch 1", "lm-eval hf, batch 8"}
    assert all(worst < 1e-3 for worst in result["largest_difference"].values())


def test_sides_that_disagree_are_not_compared(run, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match=r"^not shared: scores differ by up to .* nats, 0 greedy flags differ"):
        measure(run)


def test_bound_by_hand():
    """Two answers to one question: 3 + 2 tokens and 3 + 1; the first token of both answers is the same."""
    recipe = Recipe.load("demo", overrides=["model.n_layers=4", "model.d_model=32", "model.vocab_size=64"])
    windows = [Window((1, 2, 3), (4, 5, 6)), Window((1, 2, 3), (4, 7))]
    bound = upper_bound(windows, HybridLM(recipe.model))
    assert bound["tokens"] == 9 / 5 and bound["logits"] == 5 / 3
    assert 5 / 3 < bound["flops"] < 9 / 5
