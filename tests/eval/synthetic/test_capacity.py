"""Associative capacity of the operators: exact cases, the cosine law, decay by age, the table of expected values."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from hybridlm.eval.synthetic.capacity import (
    EXPECTED,
    capacity,
    cosine_law,
    delta_rule,
    least_squares,
    linear_attention,
    measure,
    softmax_attention,
)
from hybridlm.tests.oracles import assert_close

LINEAR = (linear_attention, delta_rule, least_squares)


def orthonormal(n: int, d: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.linalg.qr(torch.randn(3, d, d))[0][:, :n]


def random_pairs(n: int, d: int = 16, labels: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return F.normalize(torch.randn(2, n, d), dim=-1), torch.randn(2, n, labels)


@pytest.mark.parametrize("read", LINEAR)
@pytest.mark.parametrize("n", [1, 7, 16])
def test_orthonormal_keys_are_read_exactly(read, n):
    keys, values = orthonormal(n, 16), torch.randn(3, n, 5)
    assert_close(read(keys, values), values, 1e-4)


def test_orthonormal_keys_are_told_apart_by_softmax():
    keys, values = orthonormal(16, 16), torch.eye(16).expand(3, 16, 16)
    assert torch.equal(softmax_attention(keys, values).argmax(-1), values.argmax(-1))


@pytest.mark.parametrize("read", [*LINEAR, softmax_attention])
def test_one_pair_is_read_exactly(read):
    keys, values = random_pairs(1)
    assert_close(read(keys, values), values, 1e-5)


def test_of_a_repeated_key_the_delta_rule_gives_the_last_value_and_linear_attention_the_sum():
    key, values = random_pairs(1)[0].expand(2, 3, 16), random_pairs(3)[1]
    assert_close(delta_rule(key, values), values[:, -1:].expand(2, 3, 8), 1e-5)
    assert_close(linear_attention(key, values), values.sum(1, keepdim=True).expand(2, 3, 8), 1e-5)
    assert_close(least_squares(key, values), values.mean(1, keepdim=True).expand(2, 3, 8), 1e-5)


def test_softmax_of_scale_zero_gives_the_mean_value():
    keys, values = random_pairs(9)
    assert_close(softmax_attention(keys, values, scale=0.0), values.mean(1, keepdim=True).expand(2, 9, 8), 1e-5)


def test_operators_are_their_equations():
    keys, values = random_pairs(20)
    products = keys @ keys.mT
    ages = 19 - torch.arange(20)
    assert_close(linear_attention(keys, values, decay=0.9), (products * 0.9**ages) @ values, 1e-5)
    assert_close(softmax_attention(keys, values, scale=3.0), (3 * products).softmax(-1) @ values, 1e-5)
    state = torch.zeros(2, 16, 8)
    for t in range(20):
        k, v = keys[:, t, :, None], values[:, t, None]
        state = 0.9 * state
        state = state + k @ (v - k.mT @ state)
    assert_close(delta_rule(keys, values, decay=0.9), keys @ state, 1e-4)


@pytest.mark.parametrize("read", [linear_attention, delta_rule])
def test_a_gate_lets_what_is_read_fall_with_age(read):
    keys, values = orthonormal(12, 16), torch.randn(3, 12, 5)
    faded = values * 0.8 ** (11 - torch.arange(12.0))[:, None]
    assert_close(read(keys, values, decay=0.8), faded, 1e-4)


def test_linear_attention_follows_the_cosine_law():
    torch.manual_seed(0)
    for n in (8, 64, 128):
        keys = F.normalize(torch.randn(100, n, 64), dim=-1)
        values = torch.eye(n).expand(100, n, n)
        cosine = F.cosine_similarity(linear_attention(keys, values), values, dim=-1).mean().item()
        assert cosine == pytest.approx(cosine_law(n, 64), abs=0.004)


def test_at_64_dimensions_the_expected_table_comes_out():
    found = capacity(trials=10, loads=(0.5, 1, 2))
    for cell in found.cells:
        accuracy, cosine = found.expected(cell)
        assert (accuracy is None) == (cell.operator not in EXPECTED)
        if accuracy is not None and cosine is not None:
            assert cell.accuracy == pytest.approx(accuracy, abs=0.03), cell
            assert cell.cosine == pytest.approx(cosine, abs=0.015), cell


def test_limits_lie_where_the_accuracy_falls():
    found = capacity(d_k=16, n_labels=16, trials=20)
    assert set(found.limits) == {cell.operator for cell in found.cells} and len(found.limits) == 6
    assert found.limits["softmax"].most == 64
    limit = found.limits["delta rule"]
    assert 1 <= limit.flawless <= limit.accurate < 16
    how = {"d_k": 16, "n_labels": 16, "trials": 20, "seed": 0}
    assert measure("delta rule", delta_rule, limit.accurate, **how).accuracy >= 0.99
    assert measure("delta rule", delta_rule, limit.accurate + 1, **how).accuracy < 0.99
    order = [found.limits[name].accurate for name in ("delta rule", "linear attention", "least squares")]
    assert order == sorted(order)


def test_the_delta_rule_forgets_the_oldest_first():
    cell = measure("delta rule", delta_rule, 128, d_k=64, n_labels=64, trials=10, seed=0)
    assert cell.by_age == tuple(sorted(cell.by_age, reverse=True)) and cell.by_age[0] > 0.95 > 0.3 > cell.by_age[-1]
    assert math.isclose(sum(cell.by_age) / 4, cell.accuracy, abs_tol=1e-5)


def test_state_bytes_of_fixed_states_do_not_grow():
    cells = {(c.operator, c.n_pairs): c.state_bytes for c in capacity(16, 8, loads=(1, 2), trials=2).cells}
    assert cells["delta rule", 16] == cells["delta rule", 32] == 4 * 16 * 8
    assert cells["softmax", 32] == 2 * cells["softmax", 16] == 4 * 32 * 24


def test_every_figure_is_readable_in_80_columns():
    found = capacity(16, 16, loads=(0.5, 1), trials=2)
    text = io.StringIO()
    Console(file=text, width=80).print(found.table())
    text = text.getvalue()
    assert "…" not in text and text.count(" newest   oldest ") == 6
    for cell in found.cells:
        assert text.count(f"\n{cell.operator}: ") == 1, cell.operator
        ages = f"{cell.by_age[0]:.2f}     {cell.by_age[-1]:.2f}"
        numbers = f"{cell.accuracy:.3f}", f"{cell.cosine:.3f}", f"{cell.all_correct:.2f}", ages
        assert any(all(number in row for number in numbers) for row in text.splitlines()), cell


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loads": ()}, "loads: .*at least one, all positive"),
        ({"loads": (1, 0)}, "loads: .*all positive"),
        ({"decay": 1.0}, r"decay: 1 is not in \(0, 1\)"),
    ],
)
def test_wrong_options_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        capacity(**options)
