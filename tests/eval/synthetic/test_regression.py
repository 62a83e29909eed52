"""In-context regression: the sequence, the closed-form risks against sampled ones, and attention that computes them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.synthetic import regression
from hybridlm.eval.synthetic.recipe import SyntheticRecipe
from hybridlm.eval.synthetic.regression import Problem, Regression, debiased, descent, draw, ridge, two_heads
from hybridlm.eval.synthetic.train import build, train
from hybridlm.lm.mixers.attention.attention import Attention
from hybridlm.lm.parts.context import Context
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.tests.eval.synthetic.checks import check_fresh_process, digest

SIZES = [(5, 40, 0.1), (10, 20, 0.25), (10, 100, 0.25)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.floats(0, 4), st.integers(0, 2**32 - 1))
def test_sequence_is_x_and_y_in_turn(dim, pairs, noise, seed):
    task = Regression(dim=dim, pairs=pairs, noise=noise)
    inputs, labels = task.sample(6, seed)
    assert inputs.shape == (6, 2 * pairs + 1, dim + 1) == (6, task.length, task.input_dim)
    assert inputs.dtype == labels.dtype == torch.float32
    assert bool((inputs[:, ::2, -1] == 0).all()) and bool((inputs[:, 1::2, :-1] == 0).all())
    assert bool(labels[:, 1::2].isnan().all()) and bool(labels[:, ::2].isfinite().all())
    if pairs >= dim:  # the answers are one linear function of the x
        x, answers = inputs[:, ::2, :-1].double(), labels[:, ::2].double()
        w = torch.linalg.lstsq(x, answers[..., None]).solution
        torch.testing.assert_close((x @ w)[..., 0], answers, atol=1e-3, rtol=1e-3)
    if noise == 0:
        torch.testing.assert_close(inputs[:, 1::2, -1], labels[:, :-1:2])


def test_moments():
    inputs, labels = Regression(dim=4, pairs=9, noise=0.5).sample(20000, 0)
    assert inputs[:, ::2, :-1].var().item() == pytest.approx(1, rel=0.02)
    assert labels[:, ::2].square().mean().item() == pytest.approx(1, rel=0.03)  # |w|^2 is 1 on average
    assert (inputs[:, 1::2, -1] - labels[:, :-1:2]).var().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("dim", "pairs", "noise"), SIZES)
def test_risks_are_those_of_the_estimators(dim, pairs, noise):
    problem = draw(10000, dim, pairs, noise, seed=1)
    gd = problem.risk(descent(problem, regression.descent_step(dim, pairs, noise)))
    unbiased = problem.risk(debiased(problem, regression.debiased_step(dim, pairs, noise)))
    assert gd == pytest.approx(regression.descent_risk(dim, pairs, noise), rel=0.05)
    assert unbiased == pytest.approx(regression.debiased_risk(dim, pairs, noise), rel=0.05)
    assert problem.risk(np.zeros(10000)) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize(
    ("sizes", "figures"),
    [
        (SIZES[0], (0.140, 0.143, 0.0144)),
        (SIZES[1], (0.403, 0.415, 0.182)),
        (SIZES[2], (0.119, 0.120, 0.027)),
    ],
)
def test_risks_of_the_literature(sizes, figures):
    """An independent computation at the same sizes: gradient descent, debiased, Bayes (the last one by sampling)."""
    gd, unbiased, bayes = figures
    assert regression.descent_risk(*sizes) == pytest.approx(gd, abs=6e-4)
    assert regression.debiased_risk(*sizes) == pytest.approx(unbiased, abs=6e-4)
    assert regression.ridge_risk(*sizes) == pytest.approx(bayes, rel=0.06)


def test_best_steps_are_best():
    problem = draw(20000, 5, 40, 0.1, seed=2)
    for estimator, step in (
        (descent, regression.descent_step(5, 40, 0.1)),
        (debiased, regression.debiased_step(5, 40, 0.1)),
    ):
        risks = [problem.risk(estimator(problem, factor * step)) for factor in (0.8, 1.0, 1.25)]
        assert risks[1] < min(risks[0], risks[2])


def test_two_heads_come_to_debiased_descent():
    problem = draw(4000, 5, 40, 0.1, seed=0)
    target = debiased(problem, regression.debiased_step(5, 40, 0.1))
    gaps = [np.square(two_heads(problem, 0.1, scale) - target).mean() for scale in (0.02, 0.04, 0.08)]
    assert gaps[0] < 5e-7
    assert [round(b / a) for a, b in pairwise(gaps)] == pytest.approx([16, 16], abs=2)  # the gap falls as omega^4


def test_an_attention_layer_with_weights_set_by_hand_computes_two_heads():
    """Tokens (x, y, 0, 0): W_q = +-omega I and W_k = I on x, W_v reads y, W_o takes the difference of the heads."""
    dim, pairs, omega = 5, 30, 0.05
    attention = {"n_heads": 2, "head_dim": 6, "rope": None}
    model = ModelConfig.parse({"d_model": 8, "n_layers": 1, "pattern": [{"attention": attention}]})
    layer = Attention(model.layer_specs()[0].options, model, 0).double()
    mu = regression.debiased_step(dim, pairs, 0.1) / (2 * omega)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        q, k, v = layer.qkv_proj.weight.view(3, 2, 6, 8)
        for head, sign in enumerate((1, -1)):
            q[head, :dim, :dim] = sign * omega * 6**0.5 * torch.eye(dim, dtype=torch.float64)
            k[head, :dim, :dim] = torch.eye(dim)
            v[head, 0, dim] = 1
            layer.o_proj.weight[0, 6 * head] = sign * mu
    problem = draw(20, dim, pairs, 0.1, seed=3)
    tokens = torch.zeros(20, pairs + 1, 8, dtype=torch.float64)
    tokens[:, :-1, :dim], tokens[:, :-1, dim] = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    tokens[:, -1, :dim] = torch.from_numpy(problem.query)
    found = layer(tokens, Context.dense(20, pairs + 1, None, tokens.device)).y[:, -1, 0].detach().numpy()
    seen = Problem(  # a causal layer's query attends to itself as well, whose label is 0
        np.concatenate((problem.x, problem.query[:, None]), 1),
        np.concatenate((problem.y, np.zeros((20, 1))), 1),
        problem.query,
        problem.answer,
    )
    expected = regression.softmax_heads(seen, [omega, -omega], [mu, -mu])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_risk_falls_as_k_over_length():
    for pairs in (10**4, 10**6):
        k = 5 * 1.1
        assert regression.debiased_risk(5, pairs, 0.1) == pytest.approx((k + 1) / pairs, rel=1e-2)
        assert regression.descent_risk(5, pairs, 0.1) == pytest.approx((k + 1) / pairs, rel=1e-2)


def test_without_noise_ridge_is_exact_from_d_pairs_on():
    assert draw(50, 5, 5, 0.0, 1).risk(ridge(draw(50, 5, 5, 0.0, 1), 0.0)) < 1e-12
    risk = draw(4000, 6, 3, 0.0, 1).risk(ridge(draw(4000, 6, 3, 0.0, 1), 0.0))
    assert risk == pytest.approx(0.5, rel=0.08)  # three of six directions are known


def test_ridge_is_the_best_of_all():
    problem = draw(4000, 5, 20, 0.3, seed=4)
    best = problem.risk(ridge(problem, 0.3))
    assert all(best < problem.risk(ridge(problem, other)) for other in (0.03, 3.0))
    assert best < regression.descent_risk(5, 20, 0.3)


def test_order_of_the_context_does_not_matter_to_a_layer_at_the_query():
    problem = draw(50, 4, 12, 0.1, seed=0)
    order = np.random.default_rng(0).permutation(12)
    shuffled = problem._replace(x=problem.x[:, order], y=problem.y[:, order])
    for estimate in (lambda p: two_heads(p, 0.1), lambda p: descent(p, 0.5), lambda p: ridge(p, 0.1)):
        np.testing.assert_allclose(estimate(shuffled), estimate(problem), rtol=1e-9, atol=1e-12)


def test_order_of_the_context_matters_to_a_deep_causal_model():
    model = build(recipe(["model.n_layers=2"]))
    inputs, labels = Regression(dim=3, pairs=6).sample(2, 0)
    swapped = inputs.clone()
    swapped[:, 0:2], swapped[:, 4:6] = inputs[:, 4:6], inputs[:, 0:2]
    where = labels.isfinite()
    first, second = (model.answers(x, where).view(2, 7)[:, -1] for x in (inputs, swapped))
    assert (first - second).abs().min() > 1e-7


def test_a_constant_added_to_the_labels_cancels():
    problem = draw(200, 5, 40, 0.1, seed=0)
    moved = problem._replace(y=problem.y + 7)
    for estimate in (lambda p: debiased(p, 0.9), lambda p: two_heads(p, 0.1, 0.3)):
        np.testing.assert_allclose(estimate(moved), estimate(problem), atol=1e-10)
    one_head = regression.softmax_heads(moved, [0.5], [2.0]) - regression.softmax_heads(problem, [0.5], [2.0])
    np.testing.assert_allclose(one_head, 2.0 * 7, atol=1e-10)


def test_scores_and_their_places():
    task = Regression(dim=2, pairs=9)
    examples = task.sample(5, 0)
    labels = examples.labels[:, ::2]
    errors = torch.arange(10.0).expand(5, 10)
    scores = task.scores((labels + errors).flatten(), examples)
    squares = errors[0].square()
    for name, value in (("mse", squares.mean()), ("mse_2d", squares[4]), ("mse_last", squares[9])):
        torch.testing.assert_close(scores[name], torch.full((5,), value.item()), rtol=1e-3, atol=1e-4)
    assert task.loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item() == 2
    for pairs in (4, 9):
        problem = task.problem(examples, pairs)
        torch.testing.assert_close(torch.from_numpy(problem.query).float(), examples.inputs[:, 2 * pairs, :2])
        assert problem.x.shape == (5, pairs, 2) and problem.y.shape == (5, pairs)
        assert problem.risk(ridge(problem, 0.1)) < problem.risk(np.zeros(5))


def test_anchors_order_the_risks():
    risks = {a.who: a.value for a in Regression().anchors() if a.metric == "mse_last"}
    assert risks["ridge"] < risks["gradient descent"] < risks["debiased gradient descent"] < risks["zero"] == 1


def test_the_same_bytes_in_a_fresh_process():
    check_fresh_process({"regression": {"dim": 3, "pairs": 4}})
    assert digest("regression", {}, 1) == digest("regression", {"length": 81}, 1)


def recipe(overrides: list[str]) -> SyntheticRecipe:
    return SyntheticRecipe.load(
        "probes/regression",
        [f"{split}=[{{task: regression, dim: 3, pairs: 6, examples: 200}}]" for split in ("train", "test")]
        + ["grid=null", "expect={}", *overrides],
    )


def test_a_model_of_vectors_trains():
    result = train(recipe(["optim.epochs=3", "optim.batch=20"]))
    assert result["slices"][0].keys() >= {"mse", "mse_2d", "mse_last", "stderr"}
    assert 0 < result["mse"] < 1.2 and "accuracy" not in result


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"length": 80}, "length: 80, but the other options make it 81; leave it out"),
        ({"noise": -1}, "noise"),
        ({"dim": 0}, "dim"),
        ({"vocab_size": 5}, "vocab_size"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ConfigError, match=says):
        Regression.parse(options)
