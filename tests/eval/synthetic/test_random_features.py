"""Random-feature attention: the sums written out, ridge against descent, what is known of its sample complexity."""

from statistics import median

import numpy as np
import pytest
import torch

from hybridlm.eval.synthetic import random_features as rf
from hybridlm.eval.synthetic.random_features import (
    Sizes,
    SphereInputs,
    attention_features,
    draw,
    random_matrices,
    ridge,
)
from hybridlm.lm.parts.errors import ConfigError


def small(n: int = 30, seed: int = 0) -> SphereInputs:
    return draw(n, 4, 5, seed, "train")


@pytest.mark.parametrize("kind", ["relu", "softmax"])
def test_features_are_the_sums_of_the_definition(kind):
    inputs, matrices = small(3), random_matrices(6, 4, 0, biased=True)
    found = attention_features(inputs, matrices, kind).reshape(3, 6, 5)
    for n in range(3):
        query = torch.tensor([*inputs.query[n], 1.0])
        keys = torch.tensor(np.c_[inputs.keys[n], np.ones(5)])
        for m in range(6):
            scores = keys @ torch.from_numpy(matrices[m]).T @ query
            weights = scores.relu() / 5 if kind == "relu" else scores.softmax(0)
            np.testing.assert_allclose(found[n, m], weights @ keys, rtol=1e-12)


def test_inputs_lie_on_the_sphere_and_streams_differ():
    inputs = draw(2000, 8, 3, 0, "train")
    np.testing.assert_allclose(np.square(inputs.keys).sum(-1), 1)
    assert np.abs(inputs.keys.mean((0, 1))).max() < 5 / (8 * 6000) ** 0.5
    assert not np.allclose(inputs.query, draw(2000, 8, 3, 0, "test").query)


def test_biased_matrices_have_the_identity_on_the_x_block():
    difference = random_matrices(3, 4, 1, biased=True) - random_matrices(3, 4, 1, biased=False)
    np.testing.assert_allclose(difference, np.broadcast_to(np.diag([1, 1, 1, 1, 0]), (3, 5, 5)), atol=1e-15)


@pytest.mark.parametrize("kind", ["relu", "biased softmax"])
def test_order_of_the_keys_does_not_matter_but_to_the_mlp(kind):
    inputs = small()
    shuffled = inputs._replace(keys=inputs.keys[:, [3, 1, 4, 0, 2]])
    np.testing.assert_allclose(rf.features(kind, shuffled, 7, 0), rf.features(kind, inputs, 7, 0), rtol=1e-10)
    assert not np.allclose(rf.features("mlp", shuffled, 7, 0), rf.features("mlp", inputs, 7, 0))
    assert rf.features("mlp", inputs, 7, 0).shape == rf.features(kind, inputs, 7, 0).shape == (30, 35)


def test_targets():
    inputs, b = small(2), np.array([0.6, 0, 0, 0.8])
    for target, f in (
        ("second moment", lambda q, k: (k @ b) ** 2),
        ("selected sum", lambda q, k: max(q @ k, 0) * (k @ b)),
    ):
        expected = [np.mean([f(q, k) for k in keys]) for q, keys in zip(inputs.query, inputs.keys, strict=True)]
        np.testing.assert_allclose(rf.target_values(target, inputs, b), expected)


def test_without_values_nothing_comes_out():
    phi = rf.features("relu", small(), 7, 0)
    assert np.abs(phi @ np.zeros(35)).max() == 0
    np.testing.assert_allclose(ridge(phi, np.zeros(30), 0.1), 0)


@pytest.mark.parametrize("n", [20, 60])
def test_ridge_is_where_descent_converges(n):
    """From both systems: fewer and more examples than features. Full-batch descent on the values."""
    phi = 10 * rf.features("relu", small(n), 7, 0)
    y = rf.target_values("second moment", small(n), np.array([1.0, 0, 0, 0]))
    expected = ridge(phi, y, 0.5)
    hessian = phi.T @ phi + 0.5 * np.eye(35)
    step = 1 / np.linalg.eigvalsh(hessian)[-1]
    v = np.zeros(35)
    for _ in range(20000):
        v -= step * (hessian @ v - phi.T @ y)
    assert np.abs(v - expected).max() < 0.01 * np.abs(expected).max()


def test_more_heads_err_less():
    """Second moment, relu; the median of five seeds."""
    errors = []
    for heads in (3, 10, 40):
        found = []
        for seed in range(5):
            train, test = draw(800, 8, 16, seed, "train"), draw(400, 8, 16, seed, "test")
            y, y_test = (rf.target_values("second moment", x, np.eye(8)[0]) for x in (train, test))
            weights = ridge(rf.features("relu", train, heads, seed), y - y.mean(), 1e-2)
            guess = rf.features("relu", test, heads, seed) @ weights + y.mean()
            found.append(np.square(guess - y_test).mean() / y_test.var())
        errors.append(median(found))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.slow
def test_probe_reproduces_the_anchors():
    """The anchors' computation chose its penalties on its test set, from one seed: within a factor of 1.6 of ours."""
    fits = [rf.probe(seed) for seed in range(3)]
    for row in zip(*fits, strict=True):
        anchor = rf.ANCHORS[row[0].target].get(row[0].features)
        found = median(fit.error for fit in row)
        assert anchor is None or anchor / 1.6 < found < anchor * 1.6, (row[0], found, anchor)
    mean = {(fit.target, fit.features): fit.error for fit in fits[0]}
    for target in ("second moment", "selected sum"):
        assert mean[target, "relu"] < 0.6 * mean[target, "mlp"]
    assert mean["selected sum", "biased relu"] < mean["selected sum", "relu"]
    assert mean["second moment", "mlp"] > 0.9


def test_probe_is_deterministic_and_never_sees_the_test_set():
    sizes = Sizes(heads=4, dim=3, n_keys=4, n_train=60, n_test=50)
    first, second = rf.probe(1, sizes), rf.probe(1, sizes._replace(n_test=20))
    assert first == rf.probe(1, sizes) and len(first) == 10
    assert [fit.penalty for fit in first] == [fit.penalty for fit in second]


def test_anchors_and_bad_sizes():
    assert {a.who: a.value for a in rf.anchors("selected sum")}["biased relu"] == 0.081
    with pytest.raises(ValueError, match="n_train=5 at least 10"):
        rf.probe(sizes=Sizes(n_train=5))
    with pytest.raises(ValueError, match="heads=0"):
        rf.probe(sizes=Sizes(heads=0))


def test_measured_is_the_mean_over_seeds_beside_the_anchors():
    small = Sizes(heads=6, dim=4, n_keys=5, n_train=60, n_test=40)
    measured = rf.measure(seed=3, seeds=2, sizes=small)
    assert measured.fits == [rf.probe(seed, small) for seed in (3, 4)]
    table = measured.table()
    told = "test error / variance of the target, 2 seeds, heads=6, dim=4, n_keys=5, n_train=60, n_test=40"
    assert table.title == told
    assert [column.header for column in table.columns] == ["features", "second moment", "selected sum"]
    first = [fits[0].error for fits in measured.fits]
    deviation = abs(first[0] - first[1]) / 2**0.5
    assert next(iter(table.columns[1].cells)) == f"{sum(first) / 2:.3f} ± {deviation:.3f}"
    at_defaults = rf.Measured(measured.fits, Sizes()).table()
    assert [column.header for column in at_defaults.columns].count("anchor") == 2
    assert list(at_defaults.columns[2].cells) == ["0.134", "0.163", "0.14", "", "1.21"]


def test_sizes_out_of_range_are_an_error():
    with pytest.raises(ConfigError, match="n_train=3 at least 10"):
        rf.measure(sizes=Sizes(n_train=3))
