"""What the `hybridlm` model type takes and gives beside ids and logits, as transformers' own models do."""

import pytest
import torch
from transformers import AutoModel, DynamicCache

from hybridlm.lm.hf.modeling import HybridLMCache, HybridLMModel
from hybridlm.tests.hf.helpers import build, tokens
from hybridlm.tests.hf.wrapped import MIX, NO_END, left_padded, small, wrap
from hybridlm.tests.oracles import assert_close


@pytest.fixture(scope="module")
def theirs():
    return small()


def test_hidden_states_are_those_between_the_layers(theirs):
    ids = tokens(2, 9)
    states = theirs(ids, output_hidden_states=True).hidden_states
    assert len(states) == len(MIX) + 1
    x, ran = theirs.model.embed(ids), theirs.model(ids, layers=True)
    assert torch.equal(states[0], x)
    for found, block in zip(ran.layers, theirs.model.layers(), strict=True):
        assert_close(found, x, 1e-6, "layer")
        x = block(x, _context(ids)).y
    assert torch.equal(states[-1], ran.hidden) and torch.equal(theirs(ids).logits, theirs.model.head(states[-1]))
    assert theirs(ids).hidden_states is None


def _context(ids):
    from hybridlm.lm.parts.context import Context

    return Context.dense(*ids.shape, None, ids.device)


def test_hidden_states_lie_where_their_tokens_do(theirs):
    """Beside padding too, and on the way of the gradient."""
    ids, mask = left_padded(tokens(2, 9), [0, 4])
    out = theirs(ids, attention_mask=mask, output_hidden_states=True)
    alone = theirs(ids[1:, 4:], output_hidden_states=True)
    for found, expected in zip(out.hidden_states, alone.hidden_states, strict=True):
        assert_close(found[1, 4:], expected[0], 1e-5, "row 1")
        assert not found[1, :4].any()
    grads = torch.autograd.grad(out.logits.square().sum(), out.hidden_states)
    assert all(bool(grad[mask.bool()].any(-1).all()) for grad in grads)


def test_hidden_states_by_the_configuration_and_in_generation(theirs):
    found = theirs.generate(
        tokens(1, 5), max_new_tokens=3, output_hidden_states=True, return_dict_in_generate=True, **NO_END
    ).hidden_states
    assert [[tuple(state.shape) for state in step] for step in found] == [[(1, T, 32)] * 4 for T in (5, 1, 1)]
    own = wrap(build(pattern=["attention"]))
    own.config.output_hidden_states = True
    assert len(own(tokens(1, 5)).hidden_states) == 2


def test_attention_weights_are_refused(theirs):
    with pytest.raises(ValueError, match="output_attentions: no layer here forms a matrix of weights"):
        theirs(tokens(1, 4), output_attentions=True)
    with pytest.raises(ValueError, match="output_attentions"):
        theirs.generate(tokens(1, 4), output_attentions=True, return_dict_in_generate=True, max_new_tokens=2)


def test_embeddings_in_the_place_of_ids(theirs):
    ids, mask = left_padded(tokens(2, 9), [0, 4])
    for given in ({}, {"attention_mask": mask}, {"labels": ids, "attention_mask": mask}):
        found = theirs(inputs_embeds=theirs.get_input_embeddings()(ids), **given)
        expected = theirs(ids, **given)
        assert torch.equal(found.logits, expected.logits) and found.loss == expected.loss
    with pytest.raises(ValueError, match="input_ids: give either them or inputs_embeds"):
        theirs(ids, inputs_embeds=theirs.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match="input_ids: give either them or inputs_embeds"):
        theirs(attention_mask=mask)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_generation_from_embeddings(theirs, how):
    """Only what is new is returned; it is what the ids would have given."""
    ids, mask = left_padded(tokens(2, 9), [0, 4])
    how = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, **how, **NO_END}
    found = theirs.generate(inputs_embeds=theirs.get_input_embeddings()(ids), **how)
    assert torch.equal(found, theirs.generate(ids, **how)[:, 9:])


def test_another_models_cache_is_refused_by_name(theirs):
    """An empty one too: it would stay empty, and whoever hands it on would lose the past."""
    for call in (theirs, theirs.generate):
        with pytest.raises(TypeError, match="past_key_values: is a DynamicCache, but this model remembers more"):
            call(tokens(1, 4), past_key_values=DynamicCache())


def test_own_cache_may_be_given_empty(theirs):
    ids, cache = tokens(2, 9), HybridLMCache()
    out = theirs(ids[:, :5], past_key_values=cache)
    assert out.past_key_values is cache and cache.get_seq_length() == 5
    assert_close(theirs(ids[:, 5:], past_key_values=cache).logits, theirs(ids).logits[:, 5:], 1e-5, "continued")


def test_a_prompt_in_chunks(theirs):
    ids, mask = left_padded(tokens(2, 20), [0, 11])
    how = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, **NO_END}
    assert torch.equal(theirs.generate(ids, prefill_chunk_size=7, **how), theirs.generate(ids, **how))


def test_a_state_cannot_be_wound_back(theirs):
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        theirs.generate(tokens(1, 9), assistant_model=theirs, max_new_tokens=4)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        theirs.generate(tokens(1, 9), prompt_lookup_num_tokens=2, max_new_tokens=4)
    with pytest.raises(ValueError, match="cannot be cut back"):
        HybridLMCache().crop(3)


def test_two_generations_know_nothing_of_each_other(theirs):
    ids = tokens(1, 9)
    first = theirs.generate(ids, max_new_tokens=4, do_sample=False, **NO_END)
    theirs.generate(tokens(2, 7, seed=1), max_new_tokens=4, do_sample=False, **NO_END)
    assert torch.equal(theirs.generate(ids, max_new_tokens=4, do_sample=False, **NO_END), first)


def test_loss_of_a_micro_batch_is_its_share(theirs):
    """As the whole batch at once, whatever the micro-batches' numbers of labels; padding counts nowhere."""
    ids, mask = left_padded(tokens(3, 9), [0, 4, 7])
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 2:5] = -100
    n = int((labels[:, 1:] != -100).sum()) - 2  # the first real token of a padded row has none before it
    whole = theirs(ids, attention_mask=mask, labels=labels).loss
    parts = [
        theirs(ids[i : i + 1], attention_mask=mask[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=n).loss
        for i in range(3)
    ]
    assert_close(sum(parts), whole, 1e-6, "loss")
    whole = theirs(ids, attention_mask=mask, labels=labels, num_items_in_batch=torch.tensor(2 * n)).loss * 2
    assert_close(whole, sum(parts), 1e-6, "loss")


def test_labels_that_are_shifted_already(theirs):
    ids, mask = left_padded(tokens(2, 9), [0, 4])
    shifted = torch.full_like(ids, -100)
    shifted[:, :-1] = ids[:, 1:]
    for given in ({}, {"attention_mask": mask}):
        found = theirs(ids, shift_labels=shifted, labels=torch.zeros_like(ids), **given).loss
        assert_close(found, theirs(ids, labels=ids, **given).loss, 1e-6, "loss")


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
@pytest.mark.parametrize("labels", [tokens(2, 10), tokens(3, 9), tokens(9, 2), tokens(18), tokens(2, 9).float()])
def test_labels_that_are_not_one_per_token_are_refused(theirs, name, labels):
    with pytest.raises(ValueError, match=rf"^{name}: torch\.\w+ \(.*\), expected torch\.int64 \(2, 9\), one per token"):
        theirs(tokens(2, 9), **{name: labels})


@pytest.mark.parametrize("n", [0, torch.tensor(0)])
def test_micro_batches_without_a_label_have_no_loss(theirs, n):
    """transformers' own models divide 0 by 0, and the NaN goes into every weight."""
    ids = tokens(2, 9)
    assert theirs(ids, labels=torch.full_like(ids, -100), num_items_in_batch=n).loss.item() == 0


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_short_labels_count_as_long_ones(theirs, name):
    ids = tokens(2, 9)
    assert theirs(ids, **{name: ids.int()}).loss == theirs(ids, **{name: ids}).loss


def test_holes_do_not_change_which_label_is_next(theirs):
    ids = tokens(1, 9)
    kept = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1, 0]])
    found = theirs(ids, attention_mask=kept, labels=ids).loss
    alone = ids[kept.bool()][None]
    assert_close(found, theirs(alone, labels=alone).loss, 1e-6, "loss")


def test_tuples_by_argument_and_by_configuration():
    model, ids = small(), tokens(1, 5)
    logits, cache = model(ids, return_dict=False)
    assert torch.equal(logits, model(ids).logits) and cache.get_seq_length() == 5
    model.config.return_dict = False
    assert isinstance(model(ids), tuple) and not isinstance(model(ids, return_dict=True), tuple)


def test_the_model_without_its_head(tmp_path):
    whole = small(tie_embeddings=False)
    whole.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    ids, mask = left_padded(tokens(2, 9), [0, 4])
    assert type(base) is HybridLMModel
    assert not any("lm_head" in name for name, _ in base.named_parameters())
    out = base(ids, attention_mask=mask)
    assert torch.equal(whole.model.head(out.last_hidden_state), whole(ids, attention_mask=mask).logits)
    ids = tokens(2, 4)
    assert_close(
        base(ids, past_key_values=base(ids).past_key_values).last_hidden_state,
        base(torch.cat([ids, ids], 1)).last_hidden_state[:, 4:],
        1e-5,
        "continued",
    )
