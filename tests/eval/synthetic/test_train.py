import itertools
import math

import pytest
import torch

from hybridlm.eval.synthetic.recipe import SyntheticRecipe, TrainerConfig
from hybridlm.eval.synthetic.train import (
    SliceData,
    TrainingError,
    batches,
    build,
    evaluate,
    load_slices,
    optimizer,
    rate,
    train,
)
from hybridlm.tests.eval.synthetic.toy import Successor, Total, recipe


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def order(found):
    return [(i, rows.tolist()) for i, rows in found]


def test_published_batches_are_as_written_and_never_mix_slices():
    optim = TrainerConfig(schedule="as_published", batch=4)
    found = order(batches([6, 4], optim, torch.Generator()))
    assert found == [(0, [0, 1, 2, 3]), (0, [4, 5]), (1, [0, 1, 2, 3])]


def test_published_steps_per_epoch_are_those_of_the_paper():
    optim = TrainerConfig(schedule="as_published", batch=256)
    assert len(batches([100_000] + [20_000] * 4, optim, torch.Generator())) == 707


def test_corrected_batches_are_new_in_every_epoch_and_show_every_example_once():
    optim, generator = TrainerConfig(batch=[4, 5]), torch.Generator().manual_seed(0)
    epochs = [order(batches([50, 30], optim, generator)) for _ in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert [i for i, _ in epoch] != sorted(i for i, _ in epoch)  # slices take turns
        for i, n, size in ((0, 50, 4), (1, 30, 5)):
            rows = [row for j, piece in epoch if j == i for row in piece]
            assert sorted(rows) == list(range(n)) != rows
            assert all(len(piece) <= size for j, piece in epoch if j == i)


def test_published_rate_is_a_cosine_over_epochs():
    optim = TrainerConfig(schedule="as_published", lr=0.01, epochs=4)
    rates = [rate(optim, step, 3) for step in range(12)]
    c = math.cos(math.pi / 4)
    expected = [0.01, 0.005 * (1 + c), 0.005, 0.005 * (1 - c)]
    assert rates == pytest.approx([value for value in expected for _ in range(3)])
    torch_optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, T_max=4, eta_min=0)
    for epoch in range(4):
        assert scheduler.get_last_lr()[0] == pytest.approx(rates[3 * epoch])
        torch_optimizer.step()
        scheduler.step()


def test_corrected_rate_warms_up_over_a_tenth_and_ends_at_zero():
    optim = TrainerConfig(lr=0.01, epochs=4)
    rates = [rate(optim, step, 25) for step in range(100)]
    assert rates[:10] == pytest.approx([0.001 * (i + 1) for i in range(10)])
    assert rates[54] == pytest.approx(0.005)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_published_decay_reaches_every_parameter_and_corrected_matrices_only():
    for schedule in ("as_published", "corrected"):
        loaded = SyntheticRecipe.parse(recipe(optim={"schedule": schedule}))
        model = build(loaded)
        decayed = {id(p) for g in optimizer(model, loaded.optim).param_groups if g["weight_decay"] for p in g["params"]}
        names = {name for name, p in model.named_parameters() if id(p) in decayed}
        if schedule == "as_published":
            assert names == {name for name, _ in model.named_parameters()}
        else:
            assert names == {"blocks.0.mixer.gate_proj.weight"}


@pytest.mark.parametrize(("schedule", "clips"), [("as_published", 0), ("corrected", 7)])
def test_only_corrected_training_clips(schedule, clips, monkeypatch):
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, most: norms.append(most) or clip(p, most))
    train(SyntheticRecipe.parse(recipe(optim={"schedule": schedule, "epochs": 1})))
    assert norms == [1.0] * clips


@torch.no_grad()
def test_answers_are_the_full_logits_where_due():
    loaded = SyntheticRecipe.parse(recipe(model={"pattern": ["gla", "attention"], "n_layers": 2, "logit_softcap": 5.0}))
    model = build(loaded).eval()
    examples = Successor().sample(7, seed=3)
    logits = model(examples.inputs).logits
    answers = model.answers(examples.inputs, examples.labelled)
    torch.testing.assert_close(answers, logits[examples.labelled], rtol=1e-5, atol=1e-6)


def test_training_learns_stops_early_and_says_when():
    line = train(SyntheticRecipe.parse(recipe(optim={"epochs": 40})))
    assert line["accuracy"] > 0.99
    assert line["steps"] < 40 * 7
    assert line["steps_to_99"] <= line["steps"]
    assert line["steps_to_99"] % 4 == 0
    assert [s["length"] for s in line["slices"]] == [9, 15]
    assert [s["n_pairs"] for s in line["slices"]] == [3, 3]
    assert line["accuracy"] == sum(s["accuracy"] for s in line["slices"]) / 2
    assert line["state_bytes"] == 2 * 16 * 4  # the convolution's two inputs
    assert line["layers"] == {"gated_conv": 1}


def test_published_training_stops_after_whole_epochs():
    line = train(SyntheticRecipe.parse(recipe(optim={"epochs": 40, "schedule": "as_published"})))
    assert line["accuracy"] > 0.99
    assert line["steps"] < 40 * 7
    assert line["steps"] % 7 == 0


def test_above_one_nothing_stops_early():
    line = train(SyntheticRecipe.parse(recipe(optim={"epochs": 10, "lr": 0.1, "stop_at": 2.0})))
    assert line["accuracy"] > 0.99
    assert line["steps"] == 10 * 7


def test_same_recipe_same_bits_and_another_seed_other_weights():
    def numbers(seed):
        line = train(SyntheticRecipe.parse(recipe(seed=seed, model={"dropout": 0.1})))
        return {key: value for key, value in line.items() if key != "seconds"}

    assert numbers(0) == numbers(0)
    assert (
        build(SyntheticRecipe.parse(recipe(seed=0)))
        .embed.weight.ne(build(SyntheticRecipe.parse(recipe(seed=1))).embed.weight)
        .all()
    )


def test_examples_depend_on_the_data_seed_and_are_held_in_two_bytes():
    first, same, other = (
        load_slices(SyntheticRecipe.parse(recipe(seed=seed, data_seed=data)), "train")
        for seed, data in ((0, 0), (1, 0), (0, 1))
    )
    assert first[0].inputs.dtype == torch.int16
    assert torch.equal(first[0].inputs, same[0].inputs)
    assert not torch.equal(first[0].inputs, other[0].inputs)
    drawn = Successor().sample(64, SyntheticRecipe.parse(recipe()).slice_seed("train", 0))
    rows = first[0].rows(torch.arange(64))
    assert torch.equal(rows.inputs, drawn.inputs)
    assert torch.equal(rows.labels, drawn.labels)


def test_metrics_are_means_over_examples_with_their_standard_error():
    class Fixed(torch.nn.Module):
        def answers(self, inputs, where):
            chosen = inputs[where] + 1
            chosen[::4] = 0  # one of four answers in a row is wrong, whatever the batch of 4 examples
            return torch.nn.functional.one_hot(chosen % 12, 12).float()

    task = Successor(length=12)
    examples = task.sample(8, seed=0)
    part = SliceData(task, examples.inputs, torch.where(examples.labels == 0, -100, examples.labels))
    part.labels[:, 11] = (part.inputs[:, 11] + 1) % 12
    [found] = evaluate(Fixed(), [part], 4)
    where = part.labels != -100
    right = torch.zeros_like(where)
    for start in (0, 4):
        piece = where[start : start + 4]
        wrong = torch.arange(int(piece.sum())) % 4 == 0
        expected = (part.inputs[start : start + 4][piece] + 1) % 12
        right[start : start + 4][piece] = ~(wrong & (expected != 0))
    shares = right.sum(1).double() / where.sum(1)
    assert found["accuracy"] == pytest.approx(shares.mean().item())
    assert found["exact"] == pytest.approx((shares == 1).double().mean().item())
    assert found["stderr"] == pytest.approx((shares.std() / math.sqrt(8)).item(), rel=1e-5)
    assert found["n"] == 8


def test_vectors_are_read_and_squared_errors_reported():
    line = train(SyntheticRecipe.parse(recipe("toy_total", optim={"epochs": 20, "lr": 0.03})))
    assert line["mse"] < 0.05  # the variance of a sum of three uniform numbers is 0.25
    assert "accuracy" not in line
    assert line["steps_to_99"] is None


@torch.no_grad()
def test_a_value_is_due_wherever_the_target_is_a_number():
    examples = Total().sample(2, seed=0)
    examples.labels[:, 2:] = torch.nan
    model = build(SyntheticRecipe.parse(recipe("toy_total")))
    assert model.answers(examples.inputs, examples.labelled).shape == (4,)


def test_a_task_may_bring_its_own_readout():
    task = "mad_compression"
    slices = [{"task": task, "vocab_size": 8, "length": 6, "examples": 20}]
    loaded = SyntheticRecipe.parse(recipe(train=slices, test=slices, optim={"epochs": 1}))
    assert build(loaded).readout is not None
    assert 0 <= train(loaded)["accuracy"] <= 1


def test_a_loss_that_is_no_number_stops_the_run():
    with pytest.raises(TrainingError, match=r"loss is nan at step 1; lower optim.lr=0.03"):
        train(SyntheticRecipe.parse(recipe("toy_unlearnable")))


@pytest.mark.slow
def test_attention_of_ours_recalls_within_800_steps():
    line = train(SyntheticRecipe.load("mqar/t1-smoke"))
    assert line["accuracy"] >= 0.98
    assert line["steps"] <= 800
