"""lm-eval's own backend for transformers gives an exported folder the scores that our harness gives the model.

What has to be aligned, and how:
- BOS: every input of ours begins with it, and the exported tokenizer adds it, so HFLM's default is right for
  loglikelihood and generation. For rolling log-likelihood HFLM puts a prefix token in front by itself and needs
  add_bos_token=False, or BOS would stand there twice and be scored once.
- Inputs that fit: of a longer one HFLM keeps the last tokens and loses BOS, ours keeps BOS and one token less; and of a
  text of several windows ours starts each with BOS, HFLM with the token before it. Texts here are shorter.
- A token that spans context and continuation: ours encodes the two apart, HFLM cuts the joined tokens where the context
  alone would have ended. Continuations here begin with white space.
- Bytes that are no UTF-8, which a random model writes and a trained one does not: a whole run of them becomes U+FFFD in
  the tokenizers library, in ours only the bytes that are wrong. The models here choose whole pieces only.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.hf import save_pretrained
from hybridlm.lm.mixers import MIXERS

from .conftest import PROSE

pytestmark = pytest.mark.slow
MODELS = {"llama": ["attention", "attention"], "hybridlm": list(MIXERS)}  # by the format that they are exported in
LENGTH = 256


def requests(kind, arguments):
    return [Instance(kind, {}, args, i, metadata=("t", i, 1)) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tokenizer, tmp_path_factory):
    """Our harness, and lm-eval's on the exported folder."""
    pytest.importorskip("accelerate", reason="lm-eval's hf adapter imports accelerate: pip install accelerate")
    from lm_eval.models.huggingface import HFLM

    pattern = MODELS[request.param]
    sizes = {"n_layers": len(pattern), "d_model": 32, "vocab_size": 340, "context": LENGTH, "init_std": 0.15}
    sizes["tie_embeddings"] = False
    recipe = Recipe.load("demo", [f"model.{key}={value}" for key, value in {**sizes, "pattern": pattern}.items()])
    torch.manual_seed(0)
    model = HybridLM(recipe.model).eval()
    with torch.no_grad():
        model.lm_head.weight[:259] = 0  # specials and bytes: some of the pieces behind them have a logit above 0
    folder = tmp_path_factory.mktemp(request.param) / "out"
    save_pretrained(model, folder, tokenizer=tokenizer)
    theirs = HFLM(pretrained=str(folder), batch_size=4, device="cpu", dtype="float32")
    assert theirs.model.config.model_type == request.param and theirs.max_length == LENGTH
    return HybridHarness(model, tokenizer, max_length=LENGTH), theirs


def test_loglikelihood(pair):
    ours, theirs = pair
    contexts = ["The value of the valley", "Question: which floats?\nAnswer:", "", "She said the violin", PROSE[1] * 2]
    answers = [" oak", " the door was closed", "\nand", " is 305"]
    arguments = [(context, answer) for context in contexts for answer in answers]
    found = ours.loglikelihood(requests("loglikelihood", arguments))
    expected = theirs.loglikelihood(requests("loglikelihood", arguments), disable_tqdm=True)
    for mine, other in zip(found, expected, strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4) and mine[1] == other[1]


def test_rolling(pair, monkeypatch):
    ours, theirs = pair
    monkeypatch.setattr(theirs, "add_bos_token", False)
    arguments = [(text,) for text in PROSE[:4]]
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", arguments))
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", arguments), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-3)  # sums over a hundred tokens, of the order of 1000 nats


@pytest.mark.parametrize("batch_size", [1, 5])
def test_generation_with_left_padding(pair, monkeypatch, batch_size):
    ours, theirs = pair
    monkeypatch.setattr(theirs, "batch_size_per_gpu", batch_size)
    options = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    arguments = [(text[:n], dict(options)) for text in PROSE[:4] for n in (5, 20, 47)]
    found = ours.generate_until(requests("generate_until", arguments))
    assert found == theirs.generate_until(requests("generate_until", arguments), disable_tqdm=True)
    assert len(set(found)) > 1


def write_tasks(folder: Path) -> list[str]:
    """One task of every output type over a few lines of text."""
    rows = [{"text": text[:60], "rest": text[60:90], "answer": i % 3} for i, text in enumerate(PROSE[:4])]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    common |= {"test_split": "test", "metadata": {"version": 1.0}}
    perplexities = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    kinds = {
        "multiple_choice": {
            "doc_to_text": "{{text}}",
            "doc_to_choice": ["oak", "water runs", "305"],
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "brier_score"}],
        },
        "loglikelihood": {
            "doc_to_text": "{{text}}",
            "doc_to_target": " {{rest}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "loglikelihood_rolling": {"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": perplexities},
        "generate_until": {
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{rest}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16, "do_sample": False},
            "metric_list": [{"metric": "bleu"}, {"metric": "exact_match"}],
        },
    }
    for kind, options in kinds.items():
        task = {"task": f"parity_{kind}", "output_type": kind, **common, **options}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(task))
    return [f"parity_{kind}" for kind in kinds]


def test_every_task_type_has_the_same_metrics(pair, tmp_path, monkeypatch):
    tasks = write_tasks(tmp_path)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    ours, theirs = pair
    for task in tasks:
        monkeypatch.setattr(theirs, "add_bos_token", False if "rolling" in task else None)
        found, expected = (
            simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0)["results"][task]
            for lm in (ours, theirs)
        )
        metrics = [name for name, value in expected.items() if isinstance(value, float) and "stderr" not in name]
        assert metrics
        for name in metrics:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), (task, name)
