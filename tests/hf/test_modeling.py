"""The `hybridlm` model type in transformers: scores, generation, padding, beams, files, registration."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from hybridlm.lm import HybridLM
from hybridlm.lm.hf.configuration import HybridLMConfig
from hybridlm.lm.hf.modeling import HybridLMForCausalLM
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.errors import CheckpointError, ConfigError
from hybridlm.tests.hf.helpers import VOCAB, assert_same_bits, build, section, tokens
from hybridlm.tests.hf.wrapped import NO_END, left_padded, wrap
from hybridlm.tests.oracles import assert_close


@pytest.fixture(scope="module")
def own() -> HybridLM:
    """One layer of every registered mixer."""
    return build()


@pytest.fixture(scope="module")
def theirs(own) -> HybridLMForCausalLM:
    return wrap(own)


@pytest.mark.parametrize("mixer", MIXERS)
def test_greedy_generation_is_our_own(mixer):
    """Token for token, and with the logits that the whole sequence has in one forward."""
    own = build(pattern=[mixer, mixer], tie_embeddings=False)
    ids = tokens(2, 9)
    found = wrap(own).generate(
        ids, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True, **NO_END
    )
    assert torch.equal(found.sequences, own.generate(ids, 12, temperature=0))
    assert_close(torch.stack(found.logits, 1), own(found.sequences).logits[:, 8:-1], 1e-5, "logits")


def test_logits_and_loss_are_our_own(own, theirs):
    ids = tokens(2, 21)
    found, expected = theirs(input_ids=ids, labels=ids), own(ids, labels=ids)
    assert torch.equal(found.logits, expected.logits)
    assert_close(found.loss, expected.loss, 1e-6, "loss")
    last = theirs(input_ids=ids, logits_to_keep=3).logits
    assert_close(last, expected.logits[:, -3:], 1e-6, "last logits")
    chosen = theirs(input_ids=ids, logits_to_keep=torch.tensor([0, 7])).logits
    assert_close(chosen, expected.logits[:, [0, 7]], 1e-6, "chosen logits")
    assert theirs(input_ids=ids, return_dict=False)[0].shape == (2, 21, VOCAB)


@pytest.fixture(scope="module")
def exact() -> HybridLMForCausalLM:
    """In float64: short rows of eight layers enlarge float32's rounding to the size of a bound that means something."""
    return wrap(build().double())


@settings(max_examples=20, deadline=None)
@given(pads=st.lists(st.integers(0, 66), min_size=1, max_size=3), T=st.sampled_from([68, 80]))
def test_left_padding_changes_no_logits(exact, pads, T):
    ids, mask = left_padded(tokens(len(pads), T), pads)
    with torch.no_grad():
        found = exact(input_ids=ids, attention_mask=mask).logits
        for row, pad in enumerate(pads):
            expected = exact.model(ids[row : row + 1, pad:]).logits[0]
            assert_close(found[row, pad:], expected, 1e-12, f"row {row} behind {pad}")


def test_mask_with_holes_and_a_past(own, theirs):
    """A second call may pass the mask of its own tokens or of all; padding may be anywhere; ids there do not count."""
    ids, mask = tokens(2, 30), (torch.rand(2, 30, generator=torch.Generator().manual_seed(0)) > 0.3).long()
    with torch.no_grad():
        first = theirs(input_ids=ids[:, :20], attention_mask=mask[:, :20], use_cache=True)
        other = theirs(input_ids=ids[:, :20] * mask[:, :20], attention_mask=mask[:, :20], use_cache=True)
        assert torch.equal(first.logits, other.logits)
        whole = theirs(input_ids=ids[:, 20:], attention_mask=mask, past_key_values=first.past_key_values).logits
        own_part = theirs(input_ids=ids[:, 20:], attention_mask=mask[:, 20:], past_key_values=other.past_key_values)
        assert torch.equal(whole, own_part.logits)
        for row in range(2):
            real = mask[row].bool()
            expected = own(ids[row : row + 1, real]).logits[0, mask[row, :20].sum() :]
            assert_close(whole[row, real[20:]], expected, 1e-5, f"row {row}")


def test_batched_generation_with_left_padding(own, theirs):
    pads = [0, 5, 13]
    ids, mask = left_padded(tokens(3, 20), pads)
    found = theirs.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, **NO_END)
    for row, pad in enumerate(pads):
        assert torch.equal(found[row, pad:], own.generate(ids[row : row + 1, pad:], 10, temperature=0)[0])


PADDED = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (tokens(2, 4)[:0], {}, "input_ids: expected at least one row of at least one token, got (0, 4)"),
        (tokens(2, 4)[:, :0], {}, "input_ids: expected at least one row of at least one token, got (2, 0)"),
        (
            tokens(2, 4),
            {"attention_mask": PADDED},
            "attention_mask: row 1 ends in padding; pad prompts on the left (tokenizer.padding_side='left')",
        ),
        (
            tokens(2, 4) * PADDED,  # no token is 0: the mask is inferred
            {},
            "attention_mask: row 1 ends in padding; pad prompts on the left (tokenizer.padding_side='left')",
        ),
        (
            tokens(2, 4),
            {"attention_mask": PADDED * torch.tensor([[1], [0]])},
            "attention_mask: row 1 is padding only; leave it out, or begin it with a BOS token",
        ),
    ],
)
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_that_end_in_padding_are_refused_by_name(theirs, ids, options, message, use_cache):
    with pytest.raises(ValueError) as error:
        theirs.generate(ids, max_new_tokens=3, do_sample=False, use_cache=use_cache, **options, **NO_END)
    assert str(error.value) == message


def test_every_end_of_text_in_the_generation_config_stops(theirs):
    ids = tokens(2, 6)
    free = theirs.generate(ids, max_new_tokens=12, do_sample=False, **NO_END)[0, 6:].tolist()
    ends = [free[7], free[5]]
    options = {"eos_token_id": ends, "pad_token_id": 0}
    found = theirs.generate(ids[:1], max_new_tokens=12, do_sample=False, **options)[0, 6:].tolist()
    assert found == free[: 1 + min(map(free.index, ends))]


@pytest.mark.parametrize("how", [{"num_beams": 3, "do_sample": False}, {"do_sample": True, "top_k": 0}])
def test_beams_and_samples_do_not_depend_on_the_cache(theirs, how):
    ids, mask = left_padded(tokens(2, 12), [0, 4])
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(theirs.generate(ids, attention_mask=mask, max_new_tokens=8, use_cache=use_cache, **how, **NO_END))
    assert torch.equal(*found)


def test_beams_beat_greedy(own, theirs):
    """Beam search finds a continuation at least as likely; a cache that is not reordered would not."""
    ids = tokens(4, 12)
    with torch.no_grad():
        scores = []
        for beams in (1, 4):
            out = theirs.generate(ids, max_new_tokens=6, num_beams=beams, do_sample=False, **NO_END)
            log_p = own(out[:, :-1]).logits.log_softmax(-1).gather(-1, out[:, 1:, None])[..., 0]
            scores.append(log_p[:, 11:].sum(1))
    assert (scores[1] >= scores[0] - 1e-4).all() and (scores[1] > scores[0] + 1e-4).any()


def test_generation_goes_on_from_a_cache(own, theirs):
    ids = tokens(2, 10)
    first = theirs.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, **NO_END)
    cache = first.past_key_values
    assert cache.get_seq_length() == 14
    longer = theirs.generate(first.sequences, past_key_values=cache, max_new_tokens=5, do_sample=False, **NO_END)
    assert torch.equal(longer, own.generate(ids, 10, temperature=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_bitwise(tmp_path, dtype, tied):
    model = wrap(build(dtype=dtype, tie_embeddings=tied))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is HybridLMForCausalLM
    assert (loaded.dtype, loaded.device) == (dtype, torch.device("cpu"))
    assert loaded.config.model_config() == model.config.model_config()
    assert_same_bits(loaded.model, model.model)
    assert (loaded.model.lm_head.weight is loaded.model.embed.weight) is tied
    ids = tokens(2, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_cast_while_loading_keeps_decays_in_float32(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same_bits(loaded.model, wrap_copy(theirs).to(torch.bfloat16))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16, torch.float32}


def wrap_copy(model: HybridLMForCausalLM) -> HybridLM:
    copy = HybridLM(model.model.config)
    copy.load_state_dict(model.model.state_dict())
    return copy


def test_training_step_and_new_tokens(tmp_path):
    model = wrap(build(pattern=["gated_deltanet", "attention"])).train()
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    ids = tokens(2, 9).clone()
    ids[0, 3] = VOCAB + 1
    out = model(ids, labels=ids)
    assert out.past_key_values is None
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == VOCAB + 3
    assert_same_bits(loaded.model, model.model)


def test_a_missing_weight_is_an_error(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.blocks.0.ffn.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"tensor model\.blocks\.0\.ffn\.down_proj\.weight missing; get the whole"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_bad_masks_and_positions(theirs):
    ids = tokens(2, 6)
    with pytest.raises(ValueError, match=r"attention_mask: shape \(2, 5\)"):
        theirs(ids, attention_mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="position_ids: 6 for the token in row 0, column 5"):
        theirs(ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 6]]))
    theirs(ids, position_ids=torch.arange(6)[None])


def test_configuration_round_trip(tmp_path):
    model = section(attention={"rope": None, "window": 7}, logit_softcap=3.0)
    config = HybridLMConfig.of(model, eos_token_id=2)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, HybridLMConfig)
    assert loaded.model_config() == model and loaded.eos_token_id == 2
    assert (loaded.vocab_size, loaded.hidden_size, loaded.max_position_embeddings) == (VOCAB, 32, 512)
    assert loaded.num_hidden_layers == len(MIXERS)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "hybridlm" and written["model"]["attention"]["window"] == 7


def test_configuration_that_is_no_model():
    with pytest.raises(ConfigError, match=r"config\.json: model: .*did you mean 'd_model'"):
        HybridLMConfig(model={"pattern": ["attention"], "d_mode": 3})


def test_import_alone_is_light():
    code = "import sys, hybridlm; print({'torch', 'transformers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import hybridlm; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import hybridlm",
        "import transformers; import hybridlm; from transformers import AutoModelForCausalLM",
        "import hybridlm; from transformers import PreTrainedModel; from transformers import AutoModelForCausalLM",
    ],
)
def test_registered_whatever_is_imported_first(tmp_path, imports, theirs):
    theirs.save_pretrained(tmp_path)
    code = f"{imports}; print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})).__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("HybridLMForCausalLM\n")
