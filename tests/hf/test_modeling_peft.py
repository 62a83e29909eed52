"""The `hybridlm` model type under adapters of peft."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.hf.helpers import assert_same_bits, build, tokens
from hybridlm.tests.hf.wrapped import MIX, NO_END, left_padded, small, wrap
from hybridlm.tests.oracles import assert_close

peft = pytest.importorskip("peft", reason="adapters need peft; pip install 'hybridlm[dev]'")


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model with an adapter that changes something: parameters that learn are away from where they begin."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("mixer", MIXERS)
def test_low_rank_adapters_on_every_linear_layer_count(mixer):
    """Merged into the weights they compute the same; a layer whose adapter was passed over would not."""
    ids = tokens(2, 9)
    base = wrap(build(pattern=[mixer, mixer]))
    plain = base(ids).logits
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)} - {"model.lm_head"}
    adapted = moved(peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")))
    found = {name for name, module in base.named_modules() if isinstance(module, peft.tuners.lora.Linear)}
    assert found == linear and linear
    out = adapted(ids, labels=ids)
    out.loss.backward()
    assert all(p.grad.any() for p in adapted.parameters() if p.requires_grad)
    assert not torch.allclose(out.logits, plain, rtol=0.1)
    written = adapted.generate(input_ids=ids, max_new_tokens=4, do_sample=False, **NO_END)
    merged = adapted.merge_and_unload()
    assert_close(merged(ids).logits, out.logits, 1e-4, "logits")  # the product of the adapter's halves is rounded
    assert torch.equal(merged.generate(ids, max_new_tokens=4, do_sample=False, **NO_END), written)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj", "lm_head", "embed"], task_type="CAUSAL_LM"),
        peft.LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"),
        peft.IA3Config(
            target_modules=["o_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
    ],
    ids=["lora", "norms", "ia3"],
)
def test_adapters_by_name_are_saved_loaded_and_merged(tmp_path, config):
    ids, mask = left_padded(tokens(2, 9), [0, 4])
    base = small(tie_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    adapted = moved(peft.get_peft_model(base, config))
    out = adapted(ids, attention_mask=mask, labels=ids)
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter")
    found = again(ids, attention_mask=mask, labels=ids)
    assert torch.equal(found.logits, out.logits) and torch.equal(found.loss, out.loss)
    assert_close(again.merge_and_unload()(ids, attention_mask=mask).logits, out.logits, 1e-5, "merged")


@pytest.mark.parametrize("reentrant", [False, True])
def test_adapters_learn_the_same_where_layers_are_recomputed(reentrant):
    """The embedding is frozen: a reentrant recomputation needs what peft does to its output."""
    ids, gradients = tokens(2, 9), []
    for recomputed in (False, True):
        base = small()
        if recomputed:
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})
        config = peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM")
        adapted = moved(peft.get_peft_model(base, config)).train()
        adapted(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    plain, again = gradients
    assert plain.keys() == again.keys() and len(plain) == 4 * len(MIX)
    for name, gradient in plain.items():
        assert_close(again[name], gradient, 1e-4, name)


def test_a_learned_prompt_is_so_many_more_tokens():
    ids, mask = left_padded(tokens(2, 9), [0, 4])
    base = small()
    tuned = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    out = tuned(input_ids=ids, attention_mask=mask, labels=ids)
    out.loss.backward()
    assert tuned.prompt_encoder.default.embedding.weight.grad.any() and base.model.embed.weight.grad is None
    prompt = tuned.prompt_encoder.default.embedding.weight.detach()[None].expand(2, -1, -1)
    x = torch.cat([prompt, base.get_input_embeddings()(ids)], 1)
    wide = torch.cat([torch.ones(2, 3, dtype=torch.long), mask], 1)
    assert torch.equal(out.logits, base(inputs_embeds=x, attention_mask=wide).logits)
    how = {"max_new_tokens": 5, "do_sample": False, **NO_END}
    found = tuned.generate(input_ids=ids, attention_mask=mask, **how)
    assert torch.equal(found[:, 9:], base.generate(inputs_embeds=x, attention_mask=wide, **how))


def test_learned_keys_and_values_are_refused_by_name():
    """Prefix tuning: what it learns is the past of attention alone."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_attention_heads=2, token_dim=32)
    tuned = peft.get_peft_model(small(), config)
    with pytest.raises(TypeError, match="past_key_values: is a DynamicCache, but this model remembers more"):
        tuned(input_ids=tokens(1, 5))


def test_adapters_learn_under_recomputation():
    ids, grads = tokens(2, 9), []
    for recompute in (False, True):
        base = small()
        adapted = moved(
            peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        )
        adapted.train()
        if recompute:
            base.gradient_checkpointing_enable()
        adapted(ids, labels=ids).loss.backward()
        grads.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert_close(grads[1][name], grad, 1e-5, name)


def test_an_adapter_beside_its_base_is_applied(tmp_path):
    """transformers' own loading looks for adapter_config.json in the folder."""
    ids, base = tokens(2, 9), small()
    base.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_bits(plain.model, base.model)
    config = peft.LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", base_model_name_or_path=str(tmp_path)
    )
    adapted = moved(peft.get_peft_model(base, config))
    adapted.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, adapted(ids).logits)
    assert len(MIX) == plain.config.num_hidden_layers
