"""A Llama's weights under routed heads: the same bits, the same logits where all heads are used, and the way back."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.data.tokenizer import train_tokenizer
from hybridlm.lm.hf import load_pretrained
from hybridlm.lm.hf.heads import finished_heads, reconfigured, with_heads, without_heads
from hybridlm.lm.hf.importing import import_checkpoint, read_model, read_tokenizer
from hybridlm.lm.mixers.attention.head_options import HeadsConfig
from hybridlm.lm.model.loading import load_run
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.run import Run
from hybridlm.tests.hf.helpers import assert_same_bits, build, section
from hybridlm.tests.hf.llamas import ids, save
from hybridlm.tools.export import export_run
from hybridlm.tools.pretrain import pretrain

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES = {
    "a key head for each": ("llama", {"num_attention_heads": 5, "num_key_value_heads": 5, "hidden_size": 40}),
    "three queries a key head": ("llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 60}),
    "seven, tied": (
        "llama",
        {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 42, "tie_word_embeddings": True},
    ),
    "heads apart from the width, llama3": (
        "llama",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 22, "rope_parameters": LLAMA3},
    ),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "window": ("mistral", {"sliding_window": 9}),
    "biases on q, k, v; windows in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "normed heads": ("qwen3", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10}),
}


def heads_of(active: int | None = None, **options) -> HeadsConfig:
    return HeadsConfig.parse({"router": "query_norm", "active": active, **options})


def packed(model, lengths: list[int]) -> Tensor:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return model(ids(1, sum(lengths)), cu_seqlens=bounds).logits


def padded(model) -> Tensor:
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[0, :11], mask[1, 40:] = 0, 0
    return model(ids(), attention_mask=mask).logits


def cached(model) -> Tensor:
    """A prompt, a piece of several tokens, then one at a time."""
    tokens, parts = ids(), []
    cache = model.new_cache(2)
    for piece in tokens.split([17, 9, *[1] * 24], 1):
        parts.append(model(piece, cache=cache).logits)
    return torch.cat(parts, 1)


WAYS = {
    "rows": lambda model: model(ids()).logits,
    "one token": lambda model: model(ids(2, 1)).logits,
    "packed": lambda model: packed(model, [13, 1, 36]),
    "padded": padded,
    "cached": cached,
}


@pytest.fixture(scope="module", params=SHAPES)
def source(request, tmp_path_factory) -> Path:
    """A checkpoint's folder as transformers writes it, in shards."""
    kind, options = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("source")
    save(folder, kind, shard="20KB", **options)
    return folder


@torch.no_grad()
def test_with_all_heads_active_every_bit_is_that_of_the_source(tmp_path, source):
    n = read_model(source).layer_specs()[0].options.n_heads
    run = import_checkpoint(source, tmp_path / "run", heads=heads_of(n, shared=1, shared_heads=[[2], [0]]))
    assert [spec.options.heads.shared_heads for spec in run.recipe.model.layer_specs()] == [[2], [0]]
    for dtype in (torch.float32, torch.bfloat16):
        dense, moh = load_pretrained(source, dtype=dtype), load_pretrained(run.folder, dtype=dtype)
        assert_same_bits(moh, dense)
        for name, way in WAYS.items():
            assert torch.equal(way(moh), way(dense)), (name, dtype)


@torch.no_grad()
def test_with_fewer_heads_active_logits_are_others():
    dense = build(pattern=["attention", "attention"], attention={"n_heads": 4, "n_kv_heads": 2, "head_dim": 10})
    moh = reconfigured(dense, with_heads(dense.config, heads_of(3, shared=1), "it"))
    assert not torch.allclose(moh(ids() % 61).logits, dense(ids() % 61).logits, atol=1e-2)
    assert moh.embed.weight.data_ptr() == dense.embed.weight.data_ptr()
    assert moh.lm_head.weight is moh.embed.weight


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor's bytes, shape and dtype."""
    found: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[name] = hashlib.sha256(raw + f"{tensor.shape} {tensor.dtype}".encode()).hexdigest()
    return found


def converted_and_back(source: Path, folder: Path) -> Path:
    import_checkpoint(source, folder / "run", heads=heads_of(2, shared_heads=[[1], [0]]))
    export_run(folder / "run", folder / "out", "llama", None, Console(quiet=True), drop_heads=True)
    return folder / "out"


def test_dropping_the_heads_gives_the_files_tensors_back(tmp_path, source):
    out = converted_and_back(source, tmp_path)
    assert hashes(out) == hashes(source)
    assert read_model(out) == read_model(source)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_too(tmp_path, dtype):
    save(tmp_path / "src", dtype=dtype)
    assert hashes(converted_and_back(tmp_path / "src", tmp_path)) == hashes(tmp_path / "src")


def test_a_llama_that_uses_some_heads_is_none_unless_asked(tmp_path):
    save(tmp_path / "src")
    import_checkpoint(tmp_path / "src", tmp_path / "run", heads=heads_of(3, shared=1, shared_heads=[[0], [3]]))
    with pytest.raises(
        ConfigError, match=r"^[^;]*: attention.heads is set, needs None; use hybridlm, or .* \(--drop-heads\)"
    ):
        export_run(tmp_path / "run", tmp_path / "out", "llama", None, Console(quiet=True))
    export_run(tmp_path / "run", tmp_path / "own", "auto", None, Console(quiet=True))
    again = load_pretrained(tmp_path / "own")
    assert again.config.layer_specs()[0].options.heads.active == 3
    assert_same_bits(again, load_pretrained(tmp_path / "run"))


def test_heads_that_cannot_be_dropped():
    with pytest.raises(ConfigError, match="heads: none are routed in this model"):
        without_heads(section(pattern=["attention"]))
    with pytest.raises(ConfigError, match="heads: router 'moh' has learned weights"):
        without_heads(section(pattern=["attention"], attention={"heads": {"router": "moh"}}))


def test_heads_of_single_layers_are_dropped_too():
    own = {"n_heads": 4, "heads": {"router": "query_norm", "active": 3}}
    model = section(pattern=[{"attention": own}, "attention", "gla"])
    dropped = without_heads(model)
    assert [getattr(spec.options, "heads", None) for spec in dropped.layer_specs()] == [None] * 3
    assert [spec.mixer for spec in dropped.layer_specs()] == ["attention", "attention", "gla"]
    assert dropped.layer_specs()[0].options.n_heads == 4


FOUR = {"n_heads": 4, "n_kv_heads": 2}
UNFIT = {
    "below": (heads_of(1, shared=2), r"it: attention.heads.active: 1 is below shared=2"),
    "many": (heads_of(9, shared=2), r"it: attention.heads.active: 9 is more than n_heads=4"),
    "none left": (heads_of(2, shared=2), r"leaves no head to route"),
    "split": (heads_of(4, shared=1, route="groups"), r"1 is no multiple of 2"),
    "learned": (HeadsConfig(), r"router 'moh': has weights, which it has not; allowed: query_norm"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_heads_that_do_not_fit_the_model(case):
    heads, message = UNFIT[case]
    with pytest.raises(ConfigError, match=message):
        with_heads(section(pattern=["attention"], attention=FOUR), heads, "it")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["gla", "attention"], "it: its layers are gla, attention; allowed: attention alone"),
        (["moh"], "it: its layers are moh; allowed: attention alone"),
        ([{"attention": {"heads": {}}}, "attention"], "it: its heads are routed already"),
    ],
)
def test_models_whose_heads_are_not_routed(layers, message):
    with pytest.raises(ConfigError, match=message):
        with_heads(section(pattern=layers), heads_of(3), "it")


def test_numbers_left_out_are_written_down():
    finished = finished_heads(section(pattern=["attention"], attention={"n_heads": 8}), heads_of(), "it")
    assert (finished.shared, finished.active) == (2, 6)


@pytest.mark.parametrize("made", ["trained", "imported"])
@torch.no_grad()
def test_a_run_is_a_source(tmp_path, made, run_of_attention):
    source = run_of_attention if made == "trained" else import_checkpoint(save_in(tmp_path / "src"), tmp_path / "first")
    run = import_checkpoint(source.folder, tmp_path / "second", heads=heads_of(4, shared=1))
    assert torch.equal(load_run(run)(ids() % 61).logits, load_run(source)(ids() % 61).logits)
    assert run.newest_checkpoint().name == "step-000000"
    assert run.recipe.train.out == str(tmp_path / "second") and run.recipe.name == "second"
    assert run.recipe.data.train == source.recipe.data.train and run.recipe.optim == source.recipe.optim
    assert run.tokenizer().fingerprint == source.tokenizer().fingerprint
    assert run.tokenizer().front == source.tokenizer().front
    assert read_tokenizer(source.folder).fingerprint == source.tokenizer().fingerprint
    own = run.recipe.data.tokenizer
    assert own.path == (None if made == "trained" else str(tmp_path / "second" / "tokenizer"))


def test_a_converted_model_is_trained_as_it_stands(tmp_path, tiny_recipe):
    run = import_checkpoint(save_in(tmp_path / "src"), tmp_path / "run", heads=heads_of(3, shared_heads=[[1], [2]]))
    before = load_run(run)
    data = yaml.safe_load(tiny_recipe.read_text())["data"]
    given = [f"data.{key}={json.dumps(data[key])}" for key in ("train", "valid", "cache", "workers")]
    given += ["train.steps=2", "train.batch=2", "train.threads=1", "train.log_every=1", "model.context=32"]
    pretrain(Recipe.load(run.folder / "recipe.yaml", [*given, f"train.out={run.folder}"]), Console(quiet=True))
    after = Run(run.folder)
    assert after.newest_checkpoint().name == "step-000002"
    assert [spec.options.heads.shared_heads for spec in after.recipe.model.layer_specs()] == [[1], [2]]
    name = "blocks.0.mixer.qkv_proj.weight"
    assert not torch.equal(load_run(after).state_dict()[name], before.state_dict()[name])
    steps = [record for record in after.metrics() if record["kind"] == "train"]
    assert len(steps) == 2 and all(record["balance"] > 0 for record in steps)


def save_in(folder: Path) -> Path:
    save(folder)
    return folder


@pytest.fixture
def run_of_attention(tmp_path):
    recipe = Recipe.load("demo")
    model = section(pattern=["attention"], vocab_size=290, attention={"n_heads": 4})
    recipe = Recipe.parse(recipe.model_dump() | {"model": model.model_dump()})
    folder = tmp_path / "trained"
    step = folder / "checkpoints" / "step-000007"
    step.mkdir(parents=True)
    weights = HybridLM(recipe.model).state_dict()
    del weights["lm_head.weight"]
    save_file(weights, step / "model.safetensors")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    train_tokenizer(["the state of the union is strong; and so on, 1234 times"] * 50, 290).save(folder / "tokenizer")
    return Run(folder)
