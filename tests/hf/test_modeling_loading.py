"""The `hybridlm` model type is made, loaded and saved in every way that transformers has."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, pipeline

from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.lm.hf.configuration import HybridLMConfig
from hybridlm.lm.hf.modeling import HybridLMForCausalLM
from hybridlm.lm.parts.errors import CheckpointError, ConfigError
from hybridlm.tests.hf.helpers import VOCAB, assert_same_bits, build, tokens
from hybridlm.tests.hf.llamas import save_tokenizer
from hybridlm.tests.hf.wrapped import MIX, NO_END, small
from hybridlm.tests.oracles import assert_close

DECAYS = {"model.blocks.0.mixer.A_log", "model.blocks.0.mixer.dt_bias", "model.shared.hgrn2.table"}


@pytest.fixture(scope="module")
def theirs() -> HybridLMForCausalLM:
    return small()


@pytest.fixture
def folder(tmp_path, theirs) -> Path:
    theirs.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder: Path, change) -> None:
    """Let `change` have the weights of a folder's one file."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, **how) -> HybridLMForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, **how)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_hold_the_same_bits(tmp_path, tied):
    model = small(tie_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    assert_same_bits(load(tmp_path).model, model.model)


@pytest.mark.parametrize("how", [{"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}])
def test_every_spelling_of_a_dtype(folder, theirs, how):
    loaded = load(folder, **how, low_cpu_mem_usage=True)
    assert {name for name, p in loaded.named_parameters() if p.dtype == torch.float32} == DECAYS
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name).to(parameter.dtype)), name


def test_a_new_model_of_a_dtype_is_the_float32_one_rounded(theirs):
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(3)
        made[dtype] = AutoModelForCausalLM.from_config(theirs.config, dtype=dtype)
    half = dict(made[torch.bfloat16].named_parameters())
    assert {name for name, p in half.items() if p.dtype == torch.float32} == DECAYS
    for name, parameter in made[torch.float32].named_parameters():
        assert torch.equal(half[name], parameter.to(half[name].dtype)), name


def test_a_weight_that_float16_turns_into_infinity(folder):
    edit(folder, lambda weights: weights["model.norm.weight"].mul_(1e6))
    with pytest.raises(
        ConfigError, match=r"dtype: float16 ends at 65504, tensor model\.norm\.weight of .* use bfloat16"
    ):
        load(folder, dtype=torch.float16)
    assert load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"dtype: float16 ends at 65504, tensor norm\.weight of .* use bfloat16"):
        load_pretrained(folder, dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"tensor norm\.weight of the model does not"):
        save_pretrained(load_pretrained(folder).half(), folder.parent / "half")
    assert not (folder.parent / "half").exists()


@pytest.mark.parametrize("name", ["model.embed.weight", "model.blocks.0.mixer.A_log"])
def test_every_missing_weight_is_told(folder, name):
    """A tied embedding too, which transformers would leave without values."""
    edit(folder, lambda weights: weights.pop(name))
    with pytest.raises(CheckpointError, match=f"tensor {name} missing; get the whole checkpoint"):
        load(folder)
    model, info = load(folder, output_loading_info=True)
    assert info["missing_keys"] - {"model.lm_head.weight"} == {name}
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_what_is_missing_is_as_in_a_new_model(folder, theirs):
    edit(folder, lambda weights: [weights.pop(name) for name in DECAYS])
    torch.manual_seed(5)
    loaded, _ = load(folder, output_loading_info=True)
    torch.manual_seed(5)
    new = HybridLMForCausalLM(theirs.config)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, (new if name in DECAYS else theirs).get_parameter(name)), name


@pytest.mark.parametrize("tied", [True, False])
def test_made_without_memory_then_initialised(tied):
    config = HybridLMConfig.of(
        build(pattern=[*MIX, {"attention": {"freeze_qk": True}}], n_layers=4, tie_embeddings=tied).config
    )
    with torch.device("meta"):
        model = HybridLMForCausalLM(config)
    model.to_empty(device="cpu")
    torch.manual_seed(5)
    model.init_weights()
    torch.manual_seed(5)
    assert_same_bits(model.model, HybridLMForCausalLM(config).model)
    assert (model.model.lm_head.weight is model.model.embed.weight) is tied


def test_layers_on_the_disk(tmp_path, folder, theirs):
    where = {"model.embed": "cpu", "model.lm_head": "cpu", "model.norm": "cpu", "model.shared": "cpu"}
    where |= {"model.blocks.0": "disk", "model.blocks.1": "cpu", "model.blocks.2": "disk"}
    for how in (
        {"device_map": where},
        {"device_map": {"": "disk"}},
        {"device_map": "auto", "max_memory": {"cpu": 40_000}},
    ):
        loaded = load(folder, **how, offload_folder=tmp_path / "offload")
        assert "disk" in loaded.hf_device_map.values()
        ids = tokens(2, 9)
        with torch.no_grad():
            found, expected = loaded(ids, labels=ids), theirs(ids, labels=ids)
        assert torch.equal(found.logits, expected.logits)
        assert_close(found.loss, expected.loss, 1e-6, "loss")
        how = {"max_new_tokens": 4, "do_sample": False, **NO_END}
        assert torch.equal(loaded.generate(ids, **how), theirs.generate(ids, **how))


def test_layers_on_several_accelerators_are_refused(monkeypatch, folder, theirs):
    def spread(cls, *args, **how):
        theirs.hf_device_map = {"model.embed": 0, "model.blocks.0": 0, "model.blocks.1": 1, "model.norm": "cpu"}
        return theirs, {"missing_keys": set()}

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(spread))
    with pytest.raises(ConfigError, match=r"device_map: spreads the layers over 0, 1, .* use device_map=\{\"\": 0\}"):
        HybridLMForCausalLM.from_pretrained(folder)
    del theirs.hf_device_map


def test_quantisations_are_refused_by_name(folder):
    with pytest.raises(ConfigError, match="quantization_config: BitsAndBytesConfig is not supported"):
        load(folder, quantization_config=BitsAndBytesConfig())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(ConfigError, match="quantization_config: gptq is not supported"):
        load(folder)


def test_pickles_are_not_read(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load(folder)


def test_an_adapter_that_cannot_be_applied_is_refused(folder, monkeypatch):
    (folder / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("hybridlm.lm.hf.pretrained.is_peft_available", lambda: False)
    with pytest.raises(ConfigError, match=r"holds an adapter, adapter_config\.json, which needs peft"):
        load(folder)


def test_attention_implementations(folder, theirs):
    ids = tokens(1, 5)
    for name in ("eager", "sdpa"):
        assert torch.equal(load(folder, attn_implementation=name)(ids).logits, theirs(ids).logits)
    for name in ("flash_attention_2", "flex_attention", "none_such"):
        with pytest.raises((ValueError, ImportError), match=r"does not support|not supported|Flex"):
            load(folder, attn_implementation=name)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_in_both_matrices(tmp_path, tied):
    model = small(tie_embeddings=tied)
    before = model.model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(VOCAB + 5)
    assert (model.model.lm_head.weight is model.model.embed.weight) is tied
    assert torch.equal(model.model.lm_head.weight[:VOCAB], before) and model.model.lm_head.weight.shape[0] == VOCAB + 5
    model.resize_token_embeddings(VOCAB + 3)
    assert model.config.vocab_size == model.model.config.vocab_size == VOCAB + 3
    model.save_pretrained(tmp_path / "theirs")
    save_pretrained(model.model, tmp_path / "ours", format="hybridlm")
    for name in ("theirs", "ours"):
        assert_same_bits(load(tmp_path / name).model, model.model)


def test_code_of_a_checkpoint_is_neither_run_nor_passed_on(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config | code))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    for how in ({}, {"trust_remote_code": False}):
        load(folder, **how).save_pretrained(tmp_path / "again")
        assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_recomputation_and_what_it_cannot_carry():
    model, ids = small().train(), tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    runs = []
    for block in model.model.layers():
        block.mixer.register_forward_hook(lambda *_: runs.append(1))
    for kwargs in (None, {"use_reentrant": False}):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        assert model.is_gradient_checkpointing
        model.zero_grad()
        runs.clear()
        model(ids, labels=ids).loss.backward()
        assert len(runs) == 2 * len(MIX)
        for name, parameter in model.named_parameters():
            assert_close(parameter.grad, plain[name], 1e-6, name)
    with pytest.raises(ValueError, match="use_cache: a layer that runs again"):
        model(ids, use_cache=True)
    assert model.eval()(ids).past_key_values is not None
    model.train().gradient_checkpointing_disable()
    runs.clear()
    model(ids, labels=ids).loss.backward()
    assert len(runs) == len(MIX) and not model.is_gradient_checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layers_losses_and_sums_pass_through_its_recomputation(reentrant):
    """In float64, where a forward without gradients, the first of a reentrant one, rounds no other way."""

    def with_loss(_module, _inputs, mixed):
        runs.append(1)
        return mixed._replace(losses={"size": mixed.y.square().mean()}, stats={"sum": mixed.y.sum()})

    model, ids, runs = small().train(), tokens(2, 9), []
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    bare = model(ids, labels=ids).loss
    for block in model.model.layers():
        block.mixer.register_forward_hook(with_loss)
    plain = model.model(ids, labels=ids)
    assert plain.loss - bare > 1e-3
    plain.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs.clear()
    again = model.model(ids, labels=ids)
    again.loss.backward()
    assert len(runs) == 2 * len(MIX)
    assert_close(again.loss, plain.loss, 1e-12)
    assert again.aux_losses.keys() == {"size"} and again.stats.keys() == plain.stats.keys()
    for layer, sums in plain.stats.items():
        assert not again.stats[layer]["sum"].requires_grad
        assert_close(again.stats[layer]["sum"], sums["sum"], 1e-12)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name], 1e-12, name)


@pytest.mark.parametrize("training", [False, True])
def test_the_class_is_one_graph_under_torch_compile(training):
    model, ids = small().train(training), tokens(2, 9)
    expected = model(ids, labels=ids, use_cache=False)
    torch._dynamo.reset()
    found = torch.compile(model, backend="eager", fullgraph=True)(ids, labels=ids, use_cache=False)
    torch._dynamo.reset()
    assert_close(found.logits, expected.logits, 1e-6)
    assert_close(found.loss, expected.loss, 1e-6)


def test_text_generation_pipeline(tmp_path, caplog):
    (tmp_path / "tokenizer").mkdir()
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    size = tokenizer.get_vocab_size()
    own = build(pattern=MIX, vocab_size=size)
    save_pretrained(own, tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    with caplog.at_level(logging.ERROR):
        write = pipeline("text-generation", str(tmp_path / "out"), device="cpu")
        text = write("the cat", max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert caplog.records == []
    ids = torch.tensor([write.tokenizer("the cat").input_ids])
    assert text == write.tokenizer.decode(
        own.generate(ids, 5, temperature=0, stop_ids=(write.tokenizer.eos_token_id,))[0, ids.shape[1] :],
        skip_special_tokens=True,
    )


def test_generation_stops_where_it_is_told_to(tmp_path):
    """By the export's own file, and at a string, for which `generate` hands the tokenizer on to every forward."""
    (tmp_path / "tokenizer").mkdir()
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    own = build(pattern=MIX, vocab_size=tokenizer.get_vocab_size())
    save_pretrained(own, tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    model, text = load(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == tokenizer.token_to_id("</s>") == model.generation_config.pad_token_id
    prompt, how = text("the", return_tensors="pt"), {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    long = model.generate(**prompt, **how)
    T = prompt.input_ids.shape[1]
    stop = text.decode(long[0, T + 4])
    n = next(n for n in range(T + 1, T + 6) if stop in text.decode(long[0, T:n]))
    assert torch.equal(model.generate(**prompt, **how, stop_strings=stop, tokenizer=text), long[:, :n])


def test_a_configuration_says_what_tools_ask_for(theirs):
    config = AutoConfig.for_model(
        "hybridlm", model=build(pattern=["gated_deltanet", {"attention": {"n_heads": 8}}]).config.model_dump()
    )
    assert (config.num_attention_heads, config.num_hidden_layers, config.hidden_size) == (8, 2, 32)
    assert HybridLMConfig.of(build(pattern=["hgrn"]).config).num_attention_heads == 1
    assert isinstance(config.keys_to_ignore_at_inference, list)
    written = config.to_dict()
    assert (written["num_attention_heads"], written["hidden_size"], written["vocab_size"]) == (8, 32, VOCAB)
    assert AutoConfig.for_model(**written).to_dict() == written
    with pytest.raises(
        ConfigError, match=r"config\.json: hidden_size is 64, but section `model` has 32; change it there"
    ):
        AutoConfig.for_model(**written | {"hidden_size": 64})
