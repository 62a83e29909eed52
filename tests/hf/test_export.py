"""Exported folders: what transformers computes with them, what comes back from them, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.data.tokenizer import Tokenizer, train_tokenizer
from hybridlm.lm.hf import exporting, load_pretrained, save_pretrained
from hybridlm.lm.hf.formats import choose_format
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.hf.helpers import assert_same_bits, build, section, tokens
from hybridlm.tests.hf.hybrids import OLMO, QWEN
from hybridlm.tests.oracles import assert_close
from hybridlm.tools.export import export_run

LLAMA3 = {"theta": 5e5, "scaling": "llama3", "factor": 8.0, "original_context": 64}
HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 10}
# the class that plain transformers makes of it, and the options of an attention-only model
LLAMAS = {
    "grouped queries": ("Llama", {"attention": HEADS}),
    "one key head, narrow heads": ("Llama", {"attention": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 6}}),
    "untied": ("Llama", {"attention": HEADS, "tie_embeddings": False}),
    "all biases": ("Llama", {"attention": {**HEADS, "bias": "all"}, "ffn": {"hidden": 72, "bias": True}}),
    "linear scaling": ("Llama", {"attention": {**HEADS, "rope": {"scaling": "linear", "factor": 4.0}}}),
    "llama3 scaling": ("Llama", {"attention": {**HEADS, "rope": LLAMA3}}),
    "yarn": (
        "Llama",
        {"attention": {**HEADS, "rope": {"scaling": "yarn", "factor": 4.0, "original_context": 32}}},
    ),
    "window": ("Mistral", {"attention": {**HEADS, "window": 5}}),
    "heads that do not divide the width": ("Mistral", {"attention": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 14}}),
    "biases on q, k, v": ("Qwen2", {"attention": {**HEADS, "bias": "qkv"}}),
    "normed heads": ("Qwen3", {"attention": {**HEADS, "qk_norm": "head"}}),
    "windows in some layers": (
        "Qwen3",
        {"attention": {**HEADS, "qk_norm": "head"}, "pattern": [{"attention": {"window": 6}}, "attention"]},
    ),
}


@torch.no_grad()
def logits(model, T: int = 40) -> torch.Tensor:
    return model(tokens(2, T)).logits.float()


@pytest.mark.parametrize("case", LLAMAS)
def test_attention_models_are_llamas(tmp_path, case):
    name, options = LLAMAS[case]
    options = {"pattern": ["attention", "attention"], **options}
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        model, folder = build(dtype=dtype, **options), tmp_path / str(dtype)
        assert save_pretrained(model, folder) == folder
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        assert type(theirs).__name__ == f"{name}ForCausalLM" and theirs.dtype == dtype
        assert_close(logits(theirs), logits(model), bound, f"logits in {dtype}")
        assert_same_bits(load_pretrained(folder), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anything_is_hybridlm(tmp_path, dtype):
    """One layer of every registered mixer; and, where asked for, a model that would be a Llama."""
    for options in ({}, {"pattern": ["attention", "attention"]}):
        model, folder = build(dtype=dtype, **options), tmp_path / str(len(options))
        save_pretrained(model, folder, format="hybridlm")
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        assert type(theirs).__name__ == "HybridLMForCausalLM" and theirs.dtype == dtype
        assert torch.equal(logits(theirs), logits(model))
        assert_same_bits(theirs.model, model)
        assert_same_bits(load_pretrained(folder), model)


def test_frozen_projections_are_hybridlm_alone(tmp_path):
    model = build(pattern=["attention"], attention={**HEADS, "freeze_qk": True})
    with pytest.raises(ConfigError, match=r"attention.freeze_qk is True, needs False"):
        save_pretrained(model, tmp_path / "out", format="llama")
    assert choose_format(model.config, "auto") == "hybridlm"
    save_pretrained(model, tmp_path / "out")
    assert_same_bits(load_pretrained(tmp_path / "out"), model)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs(tokens(2, 20)).logits, model(tokens(2, 20)).logits)


def test_format_follows_from_the_model():
    assert choose_format(section()) == "hybridlm"
    assert choose_format(section(pattern=["attention"])) == "llama"
    assert choose_format(section(**OLMO)) == "olmo_hybrid"
    assert choose_format(section(**QWEN)) == "qwen3_5"
    assert choose_format(section(pattern=["attention"], logit_softcap=3.0)) == "hybridlm"
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        choose_format(section(), "lama")
    with pytest.raises(ConfigError, match=r"format 'qwen3_next': Qwen3-Next has experts.*; qwen3_5 is the same model"):
        choose_format(section(**QWEN), "qwen3_next")
    with pytest.raises(ConfigError, match=r"layers is .*, needs attention, and no other"):
        choose_format(section(), "llama")


@pytest.mark.parametrize("format", ["llama", "hybridlm"])
def test_shards(tmp_path, format):
    model = build(pattern=["attention", "attention"])
    save_pretrained(model, tmp_path / "out", format=format, max_shard=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model), 1e-5)
    assert_same_bits(load_pretrained(tmp_path / "out"), model)


def test_tied_head_is_stored_once(tmp_path):
    save_pretrained(build(pattern=["attention"]), tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_destination_in_use_is_left_as_it_was(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="already there and not an empty folder"):
        save_pretrained(build(pattern=["attention"]), folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(exporting, "_write_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(build(pattern=["attention"]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the state of the union is strong; and so on, 1234 times"] * 50, 290)


def test_tokenizer_larger_than_the_model(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="has 290 tokens and the model 61"):
        save_pretrained(build(pattern=["attention"]), tmp_path / "out", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tmp_path, tokenizer) -> Path:
    """The parts of a run folder that an export reads."""
    recipe = Recipe.load("olmo-hybrid", ["model.vocab_size=290", "model.n_layers=4"])
    torch.manual_seed(0)
    model = HybridLM(recipe.model)
    step = tmp_path / "run" / "checkpoints" / "step-000007"
    step.mkdir(parents=True)
    save_file(model.state_dict(), step / "model.safetensors")
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    tokenizer.save(tmp_path / "run" / "tokenizer")
    return tmp_path / "run"


@pytest.mark.parametrize(("format", "name"), [("auto", "OlmoHybrid"), ("hybridlm", "HybridLM")])
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_run_and_tokenizer(no_fla, tmp_path, run, tokenizer, format, name, dtype):
    console = Console(record=True, width=200)
    export_run(run, tmp_path / "out", format, dtype, console)
    assert f"exported: {tmp_path / 'out'}" in console.export_text()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == f"{name}ForCausalLM"
    assert (theirs.config.bos_token_id, theirs.generation_config.eos_token_id) == (1, 2)
    expected = load_pretrained(run)
    assert_same_bits(load_pretrained(tmp_path / "out"), expected.to(torch.bfloat16) if dtype else expected)
    text = "the  state 99"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode(text) == [1, *tokenizer.encode(text)]
    assert Tokenizer.load(tmp_path / "out").fingerprint == tokenizer.fingerprint


def test_run_with_bad_options(tmp_path, run):
    with pytest.raises(ConfigError, match="dtype 'fp8': unknown"):
        export_run(run, tmp_path / "out", "auto", "fp8", Console())
    with pytest.raises(ConfigError, match="no recipe"):
        export_run(tmp_path, tmp_path / "out", "auto", None, Console())
    assert not (tmp_path / "out").exists()
