"""What cannot be read is said in one line: what is there, what is allowed, and the fix."""

import json
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.lm.model.loading import load_run
from hybridlm.lm.parts.errors import Caution, CheckpointError, ConfigError, DataError
from hybridlm.tests.hf.llamas import edit_config, save, save_tokenizer
from hybridlm.tools.export import export_run
from hybridlm.tools.sample import stream

UP = "model.layers.1.mlp.up_proj.weight"


def refused(src: Path, error: type[Exception], *words: str) -> None:
    """The import fails with one line that has all of `words`, and writes nothing."""
    dst = src.parent / "dst"
    with pytest.raises(error) as caught:
        import_checkpoint(src, dst)
    message = str(caught.value)
    assert "\n" not in message and str(src) in message, message
    for word in words:
        assert word in message, message
    assert [p.name for p in src.parent.iterdir() if p.name != src.name] == []


@pytest.fixture
def src(tmp_path) -> Path:
    save(tmp_path / "src")
    return tmp_path / "src"


def rewrite(src: Path, change) -> None:
    weights = load_file(src / "model.safetensors")
    change(weights)
    save_file(weights, src / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma"}, ("model_type 'gemma'", "allowed: ", "llama", "qwen3")),
        ({"model_type": "mixtral"}, ("model_type 'mixtral' is not supported", "allowed: ", "mistral", "qwen3")),
        ({"model_type": "qwen3_moe"}, ("model_type 'qwen3_moe'", "has experts", "allowed: ")),
        ({"model_type": None}, ("model_type None is not supported", "allowed: ")),
        ({"architectures": ["LlamaForSequenceClassification"]}, ("LlamaForSequenceC", "allowed: LlamaForCausalLM")),
        ({"hidden_act": "gelu"}, ("hidden_act 'gelu'", "allowed: silu")),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quantised weights (gptq)", "dequantise")),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            ("rope_parameters.rope_type 'dynamic'", "allowed: default, linear, llama3, yarn; convert a checkpoint"),
        ),
        (
            {"rope_scaling": {"type": "longrope", "factor": 2.0}},
            ("rope_scaling.rope_type 'longrope'", "allowed: default"),
        ),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, ("'linear' without factor",)),
        ({"rope_parameters": {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}}, ("'yarn' without factor",)),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, ("'llama3' without low_freq_factor",)),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ("differ by layer type", "one set")),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor 0.5", "allowed: 1")),
        ({"hidden_size": None}, ("hidden_size missing",)),
        ({"num_attention_heads": 0}, ("config.json: num_attention_heads", "greater than 0, got 0")),
        ({"num_hidden_layers": "2"}, ("config.json: num_hidden_layers", "valid integer, got '2'")),
        ({"tie_word_embeddings": "false"}, ("config.json: tie_word_embeddings", "valid boolean, got 'false'")),
        ({"architectures": 3}, ("config.json: architectures", "valid list, got 3")),
        ({"layer_types": [["a"]]}, ("config.json: layer_types.0", "valid string, got ['a']")),
        ({"quantization_config": "gptq"}, ("config.json: quantization_config", "valid dictionary, got 'gptq'")),
        ({"rope_scaling": [1]}, ("config.json: rope_scaling", "valid dictionary", "got [1]")),
        ({"rope_parameters": {"rope_type": ["a"]}}, ("config.json: rope_parameters.rope_type", "got ['a']")),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": "x", "mscale": 1.0, "mscale_all_dim": 1.0}},
            ("config.json: rope_parameters.factor", "valid number, got 'x'"),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 0.5}},
            ("config.json: rope_parameters.factor", "greater than or equal to 1, got 0.5"),
        ),
        ({"num_key_value_heads": 3}, ("n_kv_heads", "3", "does not divide n_heads=4")),
        (
            {"model_type": "qwen2", "architectures": None, "use_sliding_window": True, "layer_types": ["chunked"]},
            ("layer_types ['chunked']", "allowed: full_attention or sliding_attention"),
        ),
        ({"model_type": "mistral", "architectures": None, "attention_bias": True}, ("mistral", "no biases")),
    ],
)
def test_configurations_that_are_not_read(src, changes, words):
    edit_config(src, **changes)
    refused(src, ConfigError, *words)


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "src").mkdir()
    refused(tmp_path / "src", ConfigError, "holds no config.json", "give a folder with config.json and safetensors")
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_pretrained(tmp_path / "nowhere")


def test_a_file_that_is_no_folder(src):
    with pytest.raises(ConfigError, match=r"model.safetensors: is no .gguf file; give a folder with config.json"):
        load_pretrained(src / "model.safetensors")


def test_a_config_that_is_no_json(src):
    (src / "config.json").write_text("{")
    refused(src, CheckpointError, "not valid JSON", "get the file again")
    (src / "config.json").write_text("[]")
    refused(src, CheckpointError, "no JSON object but a list")


def test_pickles_are_not_read(src):
    (src / "model.safetensors").rename(src / "pytorch_model.bin")
    refused(src, ConfigError, "pytorch_model.bin", "save the model again as safetensors")
    (src / "pytorch_model.bin").unlink()
    refused(src, CheckpointError, "neither model.safetensors nor", "get the checkpoint's weights")


def test_a_shape_that_contradicts_the_config(src):
    edit_config(src, intermediate_size=41)
    name = "model.layers.0.mlp.gate_proj.weight"
    refused(src, CheckpointError, f"tensor {name} has shape [40, 48]", "[41, 48]", "restore the config")


def test_a_missing_tensor(src):
    rewrite(src, lambda weights: weights.pop(UP))
    refused(src, CheckpointError, f"tensor {UP} is missing", "[40, 48]", "get the whole checkpoint")
    rewrite(src, lambda weights: weights.pop("model.norm.weight"))
    refused(src, CheckpointError, "and 1 more are missing")


def test_a_missing_head(src):
    rewrite(src, lambda weights: weights.pop("lm_head.weight"))
    refused(src, CheckpointError, "lm_head.weight is missing", "set tie_word_embeddings to true in config.json")


def test_an_unexpected_tensor(src):
    rewrite(src, lambda weights: weights.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(40, 48)}))
    refused(src, CheckpointError, "model.layers.2.mlp.up_proj.weight is unexpected", "[40, 48]", "restore the config")


def test_biases_that_the_config_does_not_have(src):
    rewrite(src, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}))
    refused(src, CheckpointError, "self_attn.q_proj.bias is unexpected")


def test_a_tied_head_of_its_own(src):
    edit_config(src, tie_word_embeddings=True)
    refused(src, CheckpointError, "lm_head.weight differs", "set tie_word_embeddings to false")


def test_quantised_tensors_without_a_word_in_the_config(src):
    rewrite(src, lambda weights: weights.update({UP: torch.zeros(40, 48, dtype=torch.int8)}))
    refused(src, ConfigError, f"tensor {UP} is stored as I8", "allowed: F64, F32, F16, BF16")


def test_a_cut_file(src):
    raw = (src / "model.safetensors").read_bytes()
    (src / "model.safetensors").write_bytes(raw[:-100])
    refused(src, CheckpointError, "not a whole safetensors file", "get the file again")


@pytest.fixture
def shards(tmp_path) -> Path:
    save(tmp_path / "src", shard="20KB")
    return tmp_path / "src"


def edit_index(src: Path, change) -> None:
    path = src / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_missing_shards(shards):
    files = sorted(shards.glob("*.safetensors"))
    for file in files[1:3]:
        file.unlink()
    refused(shards, CheckpointError, f"2 of {len(files)} shards missing: {files[1].name}, {files[2].name}")


def test_an_index_of_other_shards(shards):
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    edit_index(shards, lambda index: index.update({UP: first.name if index[UP] != first.name else second.name}))
    refused(shards, CheckpointError, f"tensor {UP} is not in", "get both again")


def test_an_index_that_points_outside(shards):
    edit_index(shards, lambda index: index.update({UP: "../elsewhere.safetensors"}))
    refused(shards, CheckpointError, "weight_map must give a file of this folder")


def test_one_file_comes_before_an_index(tmp_path, src):
    """As in transformers: an index that was left behind, or whose shards are half there, says nothing."""
    expected = load_pretrained(src).state_dict()
    (src / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.norm.weight": "model-00001.safetensors"}}'
    )
    theirs = AutoModelForCausalLM.from_pretrained(src).state_dict()
    found = load_pretrained(src).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(theirs["model.norm.weight"], found["norm.weight"])


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("base", [True, False])
def test_an_adapter_is_refused(src, name, base):
    (src / name).write_text("{}")
    if not base:
        (src / "config.json").unlink()
    refused(src, ConfigError, f"holds an adapter, {name}", "merge it with merge_and_unload of peft")


def test_no_tokenizer(src):
    (src / "tokenizer.json").unlink()
    refused(src, ConfigError, "holds neither tokenizer.json nor tokenizer.model")
    assert load_pretrained(src)  # a model needs none


def test_a_tokenizer_that_is_cut(src):
    raw = (src / "tokenizer.json").read_bytes()
    (src / "tokenizer.json").write_bytes(raw[: len(raw) // 2])
    refused(src, CheckpointError, "tokenizer.json: cannot be read", "get the file again")


def test_a_tokenizer_of_a_larger_model(tmp_path):
    save(tmp_path / "src", vocab_size=40)
    tokenizer = save_tokenizer(tmp_path / "src")
    refused(tmp_path / "src", ConfigError, f"has {tokenizer.get_vocab_size()} tokens and the model 40")


def added(folder, *tokens: str, **settings) -> int:
    """Add tokens to the tokenizer alone; the number of tokens it had before, which becomes the model's."""
    tokenizer = save_tokenizer(folder, **settings)
    rows = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(list(tokens[:1]))
    tokenizer.add_tokens(list(tokens[1:]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return rows


def test_tokens_that_were_added_to_the_tokenizer_alone(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    rows = added(src, "<pad>", "<tool>")
    save(src, vocab_size=rows)
    added(src, "<pad>", "<tool>")
    said = (
        f"{src}: its tokenizer has {rows + 2} tokens and the model {rows}; the rest were added to the tokenizer alone, "
        "and a text with one of them cannot be scored or continued"
    )
    with pytest.warns(Caution) as caught:
        run = import_checkpoint(src, tmp_path / "run")
    assert [str(w.message) for w in caught] == [said]
    tokenizer, model = run.tokenizer(), load_run(run, "cpu")
    scorer = HybridHarness(model, tokenizer, max_length=32)
    assert tokenizer.encode("the cat") and load_pretrained(src).config.vocab_size == rows
    for token, number in (("<pad>", rows), ("<tool>", rows + 1)):
        text = f"the cat{token}"
        expected = (
            f"has the token {token!r}, number {number}, but the model has rows for {rows} of the tokenizer's "
            f"{rows + 2} tokens; take it out of the text"
        )
        for ask in (
            lambda text=text: tokenizer.encode_batch(["the", text]),
            lambda text=text: scorer.loglikelihood([Instance("loglikelihood", {}, (text, " sat"), 0, ("t", 0, 1))]),
            lambda text=text: stream(run.folder, text, 3, 0.0, 1.0, 0, print),
        ):
            with pytest.raises(DataError) as error:
                ask()
            said = str(error.value)
            assert said.startswith(f"text {text!r}"[:-1]) and said.endswith(expected)
    written: list[str] = []
    stream(run.folder, "the cat", 5, 1.0, 1.0, 0, written.append)
    assert "".join(written).startswith("the cat")


def test_tokens_that_were_added_to_the_tokenizer_alone_are_exported_as_they_came(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "exported"
    src.mkdir()
    save(src, vocab_size=added(src, "<pad>", "<tool>"))
    added(src, "<pad>", "<tool>")
    with pytest.warns(Caution):
        run = import_checkpoint(src, tmp_path / "run")
    export_run(run.folder, dst, "auto", None, Console(quiet=True))
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (src, dst))
    assert len(after) == len(before) > load_pretrained(dst).config.vocab_size
    assert after("the <tool>cat<pad>")["input_ids"] == before("the <tool>cat<pad>")["input_ids"]
    with pytest.raises(ConfigError, match="give the one that the model was trained with"):
        save_pretrained(load_pretrained(dst), tmp_path / "again", tokenizer=dst)  # nobody says whose it is


def test_a_bos_without_a_row_is_refused(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    save(src, vocab_size=added(src, "<start>"))
    added(src, "<start>", bos_token="<start>")
    refused(src, ConfigError, "put the tokenizer there that belongs to the model")
