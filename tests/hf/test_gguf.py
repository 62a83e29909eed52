"""GGUF files against transformers: a random Llama written as llama.cpp's converter writes it, read back."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.lm.hf.chat import ChatTemplate
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.lm.mixers.attention.head_options import HeadsConfig
from hybridlm.lm.parts.errors import CheckpointError, ConfigError
from hybridlm.tests.hf.llamas import ids, save
from hybridlm.tests.oracles import assert_close

NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
QUANT = gguf.GGMLQuantizationType


def interleave(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Channel i of a head and channel i + D/2 become neighbours."""
    heads = rows.reshape(n_heads, -1, *rows.shape[1:])  # [H, D, ...]
    half = heads.shape[1] // 2
    order = [i // 2 + half * (i % 2) for i in range(2 * half)]
    return heads[:, order].reshape(rows.shape)


def write(path: Path, model, tokenizer: dict, quant: QUANT = QUANT.F32, **metadata) -> None:
    """A GGUF file of a transformers Llama: matrices in `quant`, vectors in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"), split_max_tensors=metadata.pop("split", 0))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for key in metadata.pop("without", ()):
        del writer.kv_data[0][f"llama.{key}"]
    for key, value in metadata.pop("floats", {}).items():
        writer.add_float32(f"llama.{key}", value)
    if (frequencies := metadata.pop("frequencies", None)) is not None:
        writer.add_tensor("rope_freqs.weight", frequencies)
    chat = metadata.pop("chat", "{{ messages[0].content }}")
    for key, value in metadata.items():
        getattr(writer, f"add_{key}")(value)
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token in special else 1 for token in vocab])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(chat)
    if "tokenizer_pre" not in metadata:
        writer.add_tokenizer_pre("gpt-2")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if (projection := name.split(".")[-2]) in heads:
            values = interleave(values, heads[projection])
        stem, suffix = name.rsplit(".", 1)
        kind = quant if values.ndim == 2 else QUANT.F32
        writer.add_tensor(f"{NAMES.get_name(stem)}.{suffix}", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def make(tmp_path):
    """Writes tmp_path/x.gguf of a random Llama and returns the Llama."""

    def make(quant=QUANT.F32, metadata=None, **options):
        theirs = save(tmp_path / "src", **{"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, **options})
        tokenizer = json.loads((tmp_path / "src" / "tokenizer.json").read_text())
        write(tmp_path / "x.gguf", theirs, tokenizer, quant, **(metadata or {}))
        return theirs

    return make


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_float32_is_bitwise_the_checkpoint(tmp_path, make, options):
    theirs = make(num_attention_heads=6, num_key_value_heads=3, hidden_size=96, rms_norm_eps=1e-5, **options)
    mine, folder = load_pretrained(tmp_path / "x.gguf"), load_pretrained(tmp_path / "src")
    assert mine.config == folder.config
    for name, tensor in folder.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name
    with torch.no_grad():
        assert_close(mine(ids()).logits, theirs(ids()).logits, 1e-5, "logits")


def test_routed_heads_over_a_file(tmp_path, make):
    make(QUANT.Q8_0)
    heads = HeadsConfig(router="query_norm", shared=2, active=4, shared_heads=[1, 3])
    run = import_checkpoint(tmp_path / "x.gguf", tmp_path / "run", heads=heads)
    mine, dense = load_pretrained(run.folder), load_pretrained(tmp_path / "x.gguf")
    assert mine.config.layer_specs()[0].options.heads.shared_heads == [1, 3]
    assert torch.equal(mine(ids()).logits, dense(ids()).logits)


# half a step of the coarsest block, relative to weights that are normal
@pytest.mark.parametrize(
    ("quant", "bound"), [("F16", 3e-4), ("BF16", 3e-3), ("Q8_0", 7e-3), ("Q4_0", 0.13), ("Q4_1", 0.1)]
)
def test_quantised_tensors_are_near(tmp_path, make, quant, bound):
    make(QUANT[quant])
    mine = load_pretrained(tmp_path / "x.gguf", dtype=torch.float32)
    for name, tensor in load_pretrained(tmp_path / "src").state_dict().items():
        assert_close(mine.state_dict()[name], tensor, bound, name)
    half = {"F16": torch.float16, "BF16": torch.bfloat16}
    matrix = import_checkpoint(tmp_path / "x.gguf", tmp_path / "run").newest_checkpoint() / "model.safetensors"
    assert load_file(matrix)["blocks.0.mixer.o_proj.weight"].dtype == half.get(quant, torch.float32)


def test_linear_rope(tmp_path, make):
    rope = {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0}
    scaling = {"rope_scaling_type": gguf.RopeScalingType.LINEAR, "rope_scaling_factor": 2.0}
    theirs = make(metadata=scaling, rope_parameters=rope)
    with torch.no_grad():
        assert_close(load_pretrained(tmp_path / "x.gguf")(ids()).logits, theirs(ids()).logits, 1e-5, "logits")


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_without_a_type_is_linear(tmp_path, make, key):
    rope = {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0}
    theirs = make(metadata={"floats": {key: 2.0}}, rope_parameters=rope)
    with torch.no_grad():
        assert_close(load_pretrained(tmp_path / "x.gguf")(ids()).logits, theirs(ids()).logits, 1e-5, "logits")


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_what_is_left_out_is_as_in_llama_cpp(tmp_path, make, factor):
    """As many key heads as heads, heads of d_model over their number, rotated whole, base 10000, a factor of 0 is 1."""
    optional = ("attention.head_count_kv", "attention.key_length", "rope.dimension_count", "rope.freq_base")
    theirs = make(
        metadata={"without": optional, "floats": {"rope.scaling.factor": factor}},
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    mine = load_pretrained(tmp_path / "x.gguf")
    assert mine.config == load_pretrained(tmp_path / "src").config
    with torch.no_grad():
        assert_close(mine(ids()).logits, theirs(ids()).logits, 1e-5, "logits")


def test_a_model_in_several_files(tmp_path, make):
    make(metadata={"split": 9})
    first, second, *others = sorted(tmp_path.glob("x-*.gguf"))
    mine, folder = load_pretrained(first), load_pretrained(tmp_path / "src")
    assert len(others) == 1 and first.name == "x-00001-of-00003.gguf"
    for name, tensor in folder.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name
    with pytest.raises(ConfigError, match=r"is file 2 of 3; give the first, x-00001-of-00003\.gguf"):
        load_pretrained(second)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 files missing: x-00002-of-00003\.gguf; get them too"):
        load_pretrained(first)
    second.write_bytes(others[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"tensors in its files instead of 21; get them all again"):
        load_pretrained(first)


def test_the_metadata_that_llama_cpp_insists_on(tmp_path, make):
    make(metadata={"without": ("attention.layer_norm_rms_epsilon",)})
    with pytest.raises(CheckpointError, match=r"lacks llama\.attention\.layer_norm_rms_epsilon; get the file again"):
        load_pretrained(tmp_path / "x.gguf")


def test_the_tokenizer_and_its_template(tmp_path, make):
    from transformers import AutoTokenizer

    make()
    run = import_checkpoint(tmp_path / "x.gguf", tmp_path / "run")
    original = AutoTokenizer.from_pretrained(tmp_path / "src")
    kept = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    for text in ("the cat  sat on 0123", "that</s> was\n\nthe mat", ""):
        expected = original(text, add_special_tokens=False).input_ids
        assert run.tokenizer().encode(text) == expected == kept(text, add_special_tokens=False).input_ids
    assert (run.tokenizer().bos_id, run.tokenizer().eos_id) == (0, 1)
    assert kept.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_templates_with_names_are_kept_with_them(tmp_path, make):
    chat = [{"name": "default", "template": "plain"}, {"name": "rag", "template": "with documents"}]
    make(metadata={"chat": chat})
    run = import_checkpoint(tmp_path / "x.gguf", tmp_path / "run")
    assert ChatTemplate.of(run).templates == {"default": "plain", "rag": "with documents"}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"architecture": "gemma3"}, "general.architecture is 'gemma3'; allowed in a GGUF file: llama"),
        ({"tokenizer_pre": "chatglm-bpe"}, "pre-tokenizer 'chatglm-bpe'; allowed: gpt2 with gpt-2 or smollm"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, "rope.scaling.type is 'yarn'; allowed"),
        ({"frequencies": np.ones(8, dtype=np.float32)}, "tensor rope_freqs.weight, frequencies as Llama 3.1 has them"),
        ({"floats": {"rope.scaling.attn_factor": 0.5}}, "rope.scaling.attn_factor is 0.5; allowed in a GGUF file: 1"),
    ],
)
def test_what_is_not_read(tmp_path, make, metadata, words):
    make(metadata=metadata)
    with pytest.raises(ConfigError, match=words):
        import_checkpoint(tmp_path / "x.gguf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cut_file(tmp_path, make):
    make()
    raw = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError, match="not a whole GGUF file"):
        load_pretrained(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="not a whole GGUF file"):
        load_pretrained(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("wanted", "front", "back"), [({}, (), ()), ({"bos": True}, (0,), ()), ({"bos": True, "eos": True}, (0,), (1,))]
)
def test_bos_and_eos_stand_around_prompts_where_the_file_wants_them(tmp_path, make, wanted, front, back):
    from transformers import AutoTokenizer

    make(metadata={f"add_{name}_token": value for name, value in wanted.items()})
    run = import_checkpoint(tmp_path / "x.gguf", tmp_path / "run")
    tokenizer = run.tokenizer()
    assert (tokenizer.front, tokenizer.back) == (front, back)
    expected = [*front, *tokenizer.encode("the cat"), *back]
    assert tokenizer.encode_prompt("the cat") == expected
    save_pretrained(load_pretrained(run.folder), tmp_path / "out", tokenizer=tokenizer)
    for folder in (run.folder / "tokenizer", tmp_path / "out"):
        assert AutoTokenizer.from_pretrained(folder)("the cat").input_ids == expected


def test_a_text_ends_at_the_end_of_a_turn_too_as_in_llama_cpp(tmp_path, make):
    from transformers import GenerationConfig

    make(metadata={"eot_token_id": 7, "eom_token_id": 9})
    run = import_checkpoint(tmp_path / "x.gguf", tmp_path / "run")
    assert run.tokenizer().stop_ids == (1, 7, 9)
    save_pretrained(load_pretrained(run.folder), tmp_path / "out", tokenizer=run.tokenizer())
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 7, 9]
