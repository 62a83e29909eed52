"""Llama-family checkpoints on disk compute here what they compute in transformers."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file

from hybridlm.lm import HybridLM
from hybridlm.lm.hf import importing, load_pretrained, opening, save_pretrained
from hybridlm.lm.hf.families.llama import hf_config, recipe_section
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.lm.model.loading import load_run
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run, recipe_of
from hybridlm.tests.hf.llamas import KINDS, edit_config, ids, save, save_tokenizer
from hybridlm.tests.oracles import assert_close, relative_rms
from hybridlm.tools.pretrain import pretrain
from hybridlm.tools.sample import stream

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": YARN,
    "yarn, sharper": {**YARN, "attention_factor": 1.4, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "yarn, two scales": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
}
WINDOWS = [
    {},
    {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
]


@st.composite
def checkpoints(draw):
    """A model type and its options, odd sizes included."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = kv_heads * group
    options = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * 2 * draw(st.integers(2, 9)),
        "head_dim": 2 * draw(st.integers(2, 11)),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_hidden_layers": 2,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": dict(ROPES[draw(st.sampled_from(sorted(ROPES)))]),
    }
    if kind in ("llama", "qwen3"):
        options["attention_bias"] = draw(st.booleans())
    if kind == "llama":
        options["mlp_bias"] = draw(st.booleans())
    if kind == "mistral":
        options["sliding_window"] = draw(st.sampled_from([None, 6, 49]))
    if kind in ("qwen2", "qwen3"):
        options |= draw(st.sampled_from(WINDOWS))
    return kind, options


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoints())
def test_logits_are_those_of_transformers(drawn):
    kind, options = drawn
    with tempfile.TemporaryDirectory() as folder:
        theirs = save(Path(folder), kind, **options)
        mine = load_pretrained(folder)
        with torch.no_grad():
            assert_close(mine(ids()).logits, theirs(ids()).logits, 1e-5, "logits")
        # and the configuration says the same when it goes back
        assert ModelConfig.parse(recipe_section(hf_config(mine.config))) == mine.config


# odd sizes, six layers: with one rounding elsewhere, each of these is more than 1e-2 off
ODD = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 54, "head_dim": 22, "intermediate_size": 37}
ROUNDED = {
    "llama": ("llama", {}),
    "grouped queries, heads apart from the width": ("llama", ODD),
    "one key head, tied": ("llama", {**ODD, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "biases": ("llama", {**ODD, "attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {**ODD, "rope_parameters": ROPES["llama3"]}),
    "yarn": ("llama", {**ODD, "rope_parameters": ROPES["yarn, sharper"]}),
    "mistral": ("mistral", {**ODD, "sliding_window": None}),
    "qwen2": ("qwen2", ODD),
    "qwen2, tied": ("qwen2", {**ODD, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**ODD, "attention_bias": True}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", ROUNDED)
def test_bfloat16_is_that_of_transformers(tmp_path, case, seed):
    kind, options = ROUNDED[case]
    assert_same_in_bfloat16(tmp_path, kind, seed=seed, num_hidden_layers=6, **options)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoints(), st.integers(0, 99))
def test_bfloat16_of_odd_shapes_and_windows(drawn, seed):
    kind, options = drawn
    with tempfile.TemporaryDirectory() as folder:
        assert_same_in_bfloat16(Path(folder), kind, seed=seed, **options)


@torch.no_grad()
def assert_same_in_bfloat16(folder: Path, kind: str, **options) -> None:
    """Logits at weights of trained size, with the attention that transformers takes by itself.

    A sliding window is computed in blocks here, so sums of its values are rounded otherwise.
    """
    import transformers

    save(folder, kind, dtype=torch.bfloat16, **options)
    theirs = getattr(transformers, f"{KINDS[kind]}ForCausalLM").from_pretrained(folder, dtype=torch.bfloat16).eval()
    mine = load_pretrained(folder)
    assert {p.dtype for p in mine.parameters()} == {torch.bfloat16}
    windowed = options.get("sliding_window") and options.get("use_sliding_window", True)
    assert_close(mine(ids()).logits, theirs(ids()).logits, 2e-2 if windowed else 1e-2, "logits")


def same_weights(model: HybridLM, other: HybridLM) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in mine.items())


@pytest.mark.parametrize("tied", [False, True])
def test_shards_are_the_single_file(tmp_path, tied):
    for name, shard in (("single", "5GB"), ("shards", "20KB")):
        save(tmp_path / name, tie_word_embeddings=tied, shard=shard)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert same_weights(load_pretrained(tmp_path / "shards"), load_pretrained(tmp_path / "single"))


def test_rope_as_it_was_written_before_transformers_5(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    theirs = save(tmp_path, rope_parameters={**scaling, "rope_theta": 3e4})
    edit_config(tmp_path, rope_parameters=None, rope_theta=3e4, rope_scaling=scaling)
    with torch.no_grad():
        assert_close(load_pretrained(tmp_path)(ids()).logits, theirs(ids()).logits, 1e-5, "logits")
    linear = {"model_type": "llama", "rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    section = recipe_section({**sizes, **linear, "max_position_embeddings": 9, "intermediate_size": 5})
    assert section["attention"]["rope"] == {"theta": 2e4, "scaling": "linear", "factor": 2.0}


def test_old_files_with_frequencies_and_a_tied_head(tmp_path):
    theirs = save(tmp_path, tie_word_embeddings=True)
    weights = load_file(tmp_path / "model.safetensors")
    expected = load_pretrained(tmp_path)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert same_weights(load_pretrained(tmp_path), expected)
    assert expected.lm_head.weight is expected.embed.weight
    with torch.no_grad():
        assert_close(expected(ids()).logits, theirs(ids()).logits, 1e-5, "logits")


def test_a_run_folder_that_does_what_runs_do(tmp_path):
    theirs = save(tmp_path / "src", "qwen2", num_hidden_layers=3, **WINDOWS[1])
    run = import_checkpoint(tmp_path / "src", tmp_path / "runs" / "mine")
    assert run.newest_checkpoint().name == "step-000000" and run.recipe.name == "mine"
    assert [spec.options.window for spec in run.recipe.model.layer_specs()] == [None, 7, 7]
    assert json.loads((run.folder / "code.json").read_text())["hybridlm"]
    assert sorted(p.name for p in run.folder.parent.iterdir()) == ["mine"]
    with torch.no_grad():
        assert_close(load_run(run)(ids()).logits, theirs(ids()).logits, 1e-5, "logits")
    assert same_weights(load_run(run), load_pretrained(run.folder))
    assert run.tokenizer().decode(run.tokenizer().encode("the cat")) == "the cat"
    written: list[str] = []
    stream(run.folder, "the cat", 5, 0.0, 1.0, 0, written.append)
    assert "".join(written).startswith("the cat")


def test_older_scripts_import_by_the_first_name():
    assert importing.import_llama is import_checkpoint


def test_weights_keep_their_dtype_unless_told(tmp_path):
    save(tmp_path / "src", dtype=torch.bfloat16)
    kept = import_checkpoint(tmp_path / "src", tmp_path / "kept")
    wide = import_checkpoint(tmp_path / "src", tmp_path / "wide", torch.float32)
    stored = [load_file(run.newest_checkpoint() / "model.safetensors") for run in (kept, wide)]
    for weights, dtype in zip(stored, (torch.bfloat16, torch.float32), strict=True):
        assert {x.dtype for x in weights.values()} == {dtype}
    assert all(torch.equal(x.float(), stored[1][name]) for name, x in stored[0].items())
    assert (kept.recipe.train.precision, wide.recipe.train.precision) == ("bf16", "fp32")
    assert {p.dtype for p in load_run(kept).parameters()} == {torch.float32}
    assert {p.dtype for p in load_pretrained(kept.folder).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bitwise(tmp_path, kind, dtype):
    options = {"tie_word_embeddings": True} if kind == "qwen2" else {}
    save(tmp_path / "src", kind, dtype=dtype, shard="30KB", **options)
    run = import_checkpoint(tmp_path / "src", tmp_path / "run")
    save_pretrained(load_pretrained(run.folder), tmp_path / "out")
    back = load_file(tmp_path / "out" / "model.safetensors")
    given = {}
    for file in (tmp_path / "src").glob("*.safetensors"):
        given |= load_file(file)
    assert back.keys() == given.keys()
    assert all(torch.equal(x, given[name]) and x.dtype == dtype for name, x in back.items())
    kinds = [json.loads((tmp_path / name / "config.json").read_text())["model_type"] for name in ("src", "out")]
    # without a window, a mistral is a llama
    assert kinds in ([kind, kind], ["mistral", "llama"])


def test_training_goes_on_from_the_weights(tmp_path, tiny_recipe):
    save(tmp_path / "src", dtype=torch.bfloat16)
    run = import_checkpoint(tmp_path / "src", tmp_path / "run")
    before = load_run(run)
    data = yaml.safe_load(tiny_recipe.read_text())["data"]
    given = [f"data.{key}={json.dumps(data[key])}" for key in ("train", "valid", "cache", "workers")]
    given += ["train.steps=2", "train.batch=2", "train.threads=1", "train.log_every=1", "optim.lr=1e-3"]
    recipe = Recipe.load(run.folder / "recipe.yaml", [*given, "model.context=32", f"train.out={run.folder}"])
    trained = pretrain(recipe, Console(quiet=True))
    assert trained.newest_checkpoint().name == "step-000002"
    assert (run.checkpoints / "step-000000").is_dir()  # the imported weights are not rotated away
    moved = relative_rms(load_run(trained).embed.weight, before.embed.weight)
    assert 0 < moved < 0.1, moved  # two small steps away from the imported weights, not from random ones
    assert [r["step"] for r in trained.metrics() if r["kind"] == "train"] == [1, 2]


def test_an_import_that_was_moved_is_trained_with_its_own_tokenizer(tmp_path):
    """Whether nothing lies where it was, or another import; what is given on the command line counts more."""
    save(tmp_path / "src")
    run = import_checkpoint(tmp_path / "src", tmp_path / "run")
    written = (run.folder / "recipe.yaml").read_text()
    moved = run.folder.rename(tmp_path / "moved")
    for found in (Run(moved).recipe, recipe_of(moved, ["train.steps=3"])):
        assert found.data.tokenizer.path == str(moved / "tokenizer")
    import_checkpoint(tmp_path / "src", run.folder)
    assert Run(moved).recipe.data.tokenizer.path == str(moved / "tokenizer")
    assert Run(run.folder).recipe.to_yaml() == written
    other = recipe_of(moved, [f"data.tokenizer.path={tmp_path / 'other'}"])
    assert other.data.tokenizer.path == str(tmp_path / "other")
    assert recipe_of(moved, ["data.tokenizer={kind: train}"]).data.tokenizer.path is None
    (moved / "tokenizer" / "tokenizer.json").unlink()  # a recipe that extends it may have begun so far
    assert Run(moved).recipe.to_yaml() == written


def test_a_tokenizer_survives_training(tmp_path):
    save(tmp_path / "src")
    save_tokenizer(tmp_path / "src", chat_template="{{ messages[0].content }}")
    run = import_checkpoint(tmp_path / "src", tmp_path / "run")
    run.tokenizer().save(run.folder / "tokenizer")  # as training does
    kept = json.loads((run.folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert kept["chat_template"] == "{{ messages[0].content }}" and kept["bos_token"] == "<s>"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_the_destination_as_it_was(tmp_path, monkeypatch, there):
    save(tmp_path / "src")
    dst = tmp_path / "runs" / "mine"
    if there:
        dst.mkdir(parents=True)
    reads = []

    def read(self, name):
        reads.append(name)
        if len(reads) == 9:
            raise OSError("the disk is gone")
        return original(self, name)

    original = opening.Folder.read
    monkeypatch.setattr(opening.Folder, "read", read)
    with pytest.raises(OSError, match="the disk is gone"):
        import_checkpoint(tmp_path / "src", dst)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if "src" not in p.parts)
    assert left == (["runs", "runs/mine"] if there else [])
    monkeypatch.undo()
    assert load_run(import_checkpoint(tmp_path / "src", dst))


def test_a_killed_import_leaves_no_destination(tmp_path):
    save(tmp_path / "src")
    code = (
        "import os, signal, sys\n"
        "from hybridlm.lm.hf import importing, opening\n"
        "opening.Folder.read = lambda self, name: os.kill(os.getpid(), signal.SIGKILL)\n"
        "importing.import_checkpoint(sys.argv[1], sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "src"), str(tmp_path / "dst")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "dst").exists()


def test_a_destination_in_use_is_refused_and_left(tmp_path):
    save(tmp_path / "src")
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="not an empty folder; give another destination"):
        import_checkpoint(tmp_path / "src", dst)
    assert contents(tmp_path) == before


def test_a_destination_that_cannot_be(tmp_path):
    save(tmp_path / "src")
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"notes.txt is a file; give another destination"):
        import_checkpoint(tmp_path / "src", tmp_path / "notes.txt" / "deep" / "dst")
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_memory_is_the_largest_tensor_beside_the_model(tmp_path):
    """Over 90 MB of weights, the largest 12 MB: an import holds a tensor or two at a time, a model is there once."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 6000}
    save(tmp_path / "large", num_attention_heads=8, head_dim=64, **sizes)
    save(tmp_path / "small")
    size, largest = (tmp_path / "large" / "model.safetensors").stat().st_size, 6000 * 512 * 4
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from hybridlm.lm.hf import load_pretrained\n"
        "from hybridlm.lm.hf.importing import import_checkpoint\n"
        "def peak():\n"  # not ru_maxrss, in which the peak of the process that started this one counts
        "    return 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "def step(name):\n"
        "    import_checkpoint(f'{sys.argv[1]}/{name}', f'{sys.argv[1]}/{name}-run')\n"
        "    yield peak()\n"
        "    model = load_pretrained(f'{sys.argv[1]}/{name}-run')\n"
        "    yield peak()\n"
        "before = list(step('small'))[-1]\n"
        "print(*(peak - before for peak in step('large')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    imported, loaded = (int(word) for word in done.stdout.split()[-2:])
    print(f"import {imported / 1e6:.1f} MB, load {loaded / 1e6:.1f} MB; weights {size / 1e6:.1f} MB")
    assert size > 90e6
    assert imported < 4 * largest < size, f"importing added {imported / 1e6:.1f} MB"
    assert loaded < size + 3 * largest, f"loading added {loaded / 1e6:.1f} MB to it, the weights have {size / 1e6:.1f}"
