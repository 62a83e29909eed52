"""Sampling: greedy is the argmax of full forwards, nucleus and seeds do what they say, padding changes nothing."""

import warnings

import pytest
import torch
from torch import Tensor

from hybridlm.lm.model.generate import NaNLogits, _draw, decode
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.model.helpers import build, tokens


def loud(**options):
    """A model whose distribution is far from flat."""
    return build(init_std=0.3, tie_embeddings=False, **options)


@torch.no_grad()
def greedy_by_full_forwards(model, ids: Tensor, n: int) -> Tensor:
    for _ in range(n):
        ids = torch.cat((ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)), 1)
    return ids


@pytest.mark.parametrize("prompt", [1, 5, 63, 64])
def test_greedy_is_the_argmax_of_full_forwards(prompt):
    model, ids = loud(), tokens(3, prompt)
    assert torch.equal(model.generate(ids, 12, temperature=0), greedy_by_full_forwards(model, ids, 12))


def test_greedy_with_a_sliding_window():
    model, ids = loud(pattern=["attention"], attention={"window": 8}), tokens(2, 20)
    assert torch.equal(model.generate(ids, 20, temperature=0), greedy_by_full_forwards(model, ids, 20))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_continue_as_unpadded_ones(side):
    model, lengths = loud(), [3, 11, 7]
    prompts = [tokens(1, n, seed=n) for n in lengths]
    rows = [torch.zeros(11, dtype=torch.long) for _ in lengths]
    mask = torch.zeros(3, 11, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        place = slice(11 - lengths[i], None) if side == "left" else slice(lengths[i])
        rows[i][place], mask[i, place] = prompt[0], 1
    found = model.generate(torch.stack(rows), 9, temperature=0, attention_mask=mask)
    for i, prompt in enumerate(prompts):
        assert found[i, 11:].tolist() == model.generate(prompt, 9, temperature=0)[0, lengths[i] :].tolist()


def test_a_seed_repeats_a_sample_and_another_does_not():
    model, ids = build(), tokens(2, 4)
    first = model.generate(ids, 20, seed=3)
    assert torch.equal(first, model.generate(ids, 20, seed=3))
    assert not torch.equal(first, model.generate(ids, 20, seed=4))
    assert torch.equal(first[:, :4], ids)


def frequencies(scores: Tensor, temperature: float, top_p: float, n: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = _draw(scores.expand(n, -1), temperature, top_p, generator)
    return torch.bincount(drawn, minlength=scores.shape[-1]) / n


P = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, [0, 1, 2, 3, 4]), (0.95, [0, 1, 3, 4]), (0.8, [1, 3, 4]), (0.6, [1, 3]), (0.39, [1]), (1e-6, [1])],
)
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
    expected = torch.zeros(5)
    expected[kept] = P[kept] / P[kept].sum()
    found = frequencies(P.log(), 1.0, top_p)
    assert (found - expected).abs().amax() < 0.015  # four standard errors of 20,000 draws
    assert not found[expected == 0].any()


def test_temperature_sharpens():
    expected = P**2 / (P**2).sum()
    assert (frequencies(P.log(), 0.5, 1.0) - expected).abs().amax() < 0.015
    assert frequencies(P.log(), 0.0, 1.0)[1] == 1


def test_rows_stop_by_themselves():
    model, ids = loud(), tokens(3, 6)
    free = model.generate(ids, 15, temperature=0)
    stop = int(free[0, 8])
    found = model.generate(ids, 15, temperature=0, stop_ids=(stop,))
    for row, whole in zip(found[:, 6:].tolist(), free[:, 6:].tolist(), strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert row[:end] == whole[:end][: len(row)]
        assert set(row[end:]) <= {stop}


def test_generation_ends_when_every_row_has_stopped():
    model, ids = loud(), tokens(1, 6)
    free = model.generate(ids, 15, temperature=0)[0, 6:].tolist()
    found = model.generate(ids, 15, temperature=0, stop_ids=(free[4],))
    assert found.shape[1] == 6 + free.index(free[4]) + 1


def test_columns_come_as_they_are_drawn_and_nothing_is_computed_ahead():
    model, ids, calls = loud(), tokens(2, 6), []
    found = model.generate(ids, 5, temperature=0)
    model.register_forward_hook(lambda *_: calls.append(1))
    columns = decode(model, ids, 5, temperature=0)
    first = next(columns)
    assert torch.equal(first, found[:, 6]) and len(calls) == 1
    assert torch.equal(torch.stack(list(columns), 1), found[:, 7:]) and len(calls) == 5


def test_no_new_tokens():
    ids = tokens(2, 6)
    assert torch.equal(build().generate(ids, 0), ids)


@pytest.mark.parametrize(
    ("ids", "how", "message"),
    [
        (tokens(2, 0), {}, "ids: expected prompts [B, T], at least one of at least one token, got (2, 0)"),
        (tokens(0, 4), {}, "ids: expected prompts [B, T], at least one of at least one token, got (0, 4)"),
        (tokens(1, 3)[0], {}, "ids: expected prompts [B, T], at least one of at least one token, got (3,)"),
        (
            tokens(1, 3),
            {"temperature": -1},
            "temperature: -1 is negative; use 0 for the most likely token, or more",
        ),
        (
            tokens(1, 3),
            {"temperature": float("nan")},
            "temperature: nan is no number; use 0 for the most likely token, or more",
        ),
        (tokens(1, 3), {"top_p": float("nan")}, "top_p: nan is outside (0, 1]; 1 keeps every token"),
        (tokens(1, 3), {"max_new_tokens": -1}, "max_new_tokens: -1 is negative; use 0 or more"),
        (tokens(1, 3), {"seed": 2**64}, "seed: 18446744073709551616 is outside 0 ... 2^64 - 1; use one of these"),
        (tokens(1, 3), {"seed": -1}, "seed: -1 is outside 0 ... 2^64 - 1; use one of these"),
        (
            tokens(3, 3),
            {"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0], [0, 1, 0]])},
            "attention_mask: row 1 is padding only, and has nothing to continue; leave the row out, or begin it with a "
            "BOS token",
        ),
        (tokens(1, 3), {"attention_mask": torch.ones(1, 2)}, "attention_mask: shape (1, 2), expected (1, 3)"),
        (tokens(1, 3), {"top_p": 0}, "top_p: 0 is outside (0, 1]; 1 keeps every token"),
        (tokens(1, 3), {"top_p": 1.5}, "top_p: 1.5 is outside (0, 1]; 1 keeps every token"),
    ],
)
def test_errors_say_the_fix(ids, how, message):
    with pytest.raises(ValueError) as error:
        build().generate(ids, **{"max_new_tokens": 3, **how})
    assert str(error.value) == message


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 5.0, "seed": 0}, {"top_p": 0.99, "seed": 1}])
def test_ids_without_a_token_are_never_drawn(how):
    model, ids = loud(vocab_size=64), tokens(8, 4, vocab=40)
    with torch.no_grad():
        model.lm_head.weight[40:] *= 30  # the likeliest by far, one way or the other
        assert (model(ids).logits[:, -1].argmax(-1) >= 40).any()
    assert (model.generate(ids, 20, **how)[:, 4:] >= 40).any()
    assert (model.generate(ids, 20, vocab_size=40, **how) < 40).all()
    larger = model.generate(ids, 20, vocab_size=65, **how)  # a tokenizer with more tokens than rows
    assert torch.equal(larger, model.generate(ids, 20, **how))


@pytest.mark.parametrize("temperature", [1e-300, 1e-44, 1e-9])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    model, ids = loud(), tokens(2, 6)
    assert torch.equal(model.generate(ids, 6, temperature=temperature), model.generate(ids, 6, temperature=0))


def test_the_largest_seed_and_an_infinite_logit():
    model, ids = loud(), tokens(2, 4)
    assert model.generate(ids, 3, seed=2**64 - 1).shape == (2, 7)
    scores = torch.tensor([[0.0, float("inf"), 1.0], [float("-inf"), 0.0, float("-inf")]]).nan_to_num()
    assert _draw(scores, 0.5, 0.9, None).tolist() == [1, 1]


def test_learned_positions_end_and_say_so_before_anything_is_drawn():
    model = build(pattern=["attention"], context=16, positions="learned")
    assert model.generate(tokens(1, 10), 7, temperature=0).shape == (1, 17)  # the last token is never read
    for prompt, new, fix in ((10, 8, "use max_new_tokens=7 or less"), (17, 0, "shorten the prompt")):
        with pytest.raises(ConfigError) as error:
            model.generate(tokens(1, prompt), new)
        said = f"max_new_tokens: {new} after a prompt of {prompt} tokens, but model.positions=learned ends at 16; {fix}"
        assert str(error.value) == said
    mask = (torch.arange(20) >= 10).long()[None]
    assert model.generate(tokens(1, 20), 7, attention_mask=mask).shape == (1, 27)  # padding takes no positions


@pytest.mark.parametrize(("prompt", "new", "warned"), [(10, 6, 0), (10, 7, 1), (16, 1, 1), (30, 1, 1)])
def test_rotary_attention_warns_once_beyond_what_it_was_trained_on(prompt, new, warned):
    model = build(pattern=["attention"], context=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            model.generate(tokens(1, prompt), new, temperature=0)
    said = "the text goes on beyond the 16 tokens that the model was trained on at a time (model.context); what it "
    assert [str(w.message) for w in caught] == [said + "writes from there may make no sense"] * warned


def test_what_has_no_absolute_positions_goes_on_without_a_word():
    for options in ({"pattern": ["gated_deltanet"]}, {"pattern": ["attention"], "attention": {"window": 8}}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build(context=16, **options).generate(tokens(1, 30), 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_stops_and_says_in_which_row(temperature):
    model, ids = loud(), tokens(3, 6, vocab=60)
    ids[2, 3] = 60  # nobody else's
    with torch.no_grad():
        model.embed.weight[60] = float("nan")
    with pytest.raises(NaNLogits, match=r"^the model gives NaN") as error:
        model.generate(ids, 4, temperature=temperature)
    assert error.value.row == 2
