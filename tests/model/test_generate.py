"""Sampling: greedy is the argmax of full forwards, nucleus and seeds do what they say, padding changes nothing."""

import pytest
import torch
from torch import Tensor

from hybridlm.lm.model.generate import NaNLogits, _draw, decode
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
        (tokens(2, 0), {}, "ids: expected a prompt [B, T] of at least one token, got shape (2, 0)"),
        (tokens(1, 3)[0], {}, "ids: expected a prompt [B, T] of at least one token, got shape (3,)"),
        (
            tokens(1, 3),
            {"temperature": -1},
            "temperature: -1 is negative; use 0 for the most likely token, or more",
        ),
        (tokens(1, 3), {"top_p": 0}, "top_p: 0 is outside (0, 1]; 1 keeps every token"),
        (tokens(1, 3), {"top_p": 1.5}, "top_p: 1.5 is outside (0, 1]; 1 keeps every token"),
    ],
)
def test_errors_say_the_fix(ids, how, message):
    with pytest.raises(ValueError) as error:
        build().generate(ids, 3, **how)
    assert str(error.value) == message


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_stops_and_says_in_which_row(temperature):
    model, ids = loud(), tokens(3, 6, vocab=60)
    ids[2, 3] = 60  # nobody else's
    with torch.no_grad():
        model.embed.weight[60] = float("nan")
    with pytest.raises(NaNLogits, match=r"^the model gives NaN") as error:
        model.generate(ids, 4, temperature=temperature)
    assert error.value.row == 2
