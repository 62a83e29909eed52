"""The table of lower bounds of HGRN and HGRN-2: its values, its gradients at the extremes, its place in the model."""

import pytest
import torch
from torch import Tensor

from hybridlm.lm.mixers.lower_bounds import LowerBounds, forget_gate
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.train.optim import parameter_groups
from hybridlm.tests.model.helpers import build, small, tokens
from hybridlm.tests.oracles import assert_close


def table(n_layers: int, width: int = 3, spread: float = 0.0) -> LowerBounds:
    module = LowerBounds("hgrn", [width], small(n_layers=n_layers, pattern=["attention"])).double()
    noise = torch.randn(n_layers, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module.table.data += spread * noise
    return module


def bounds_of(module: LowerBounds) -> Tensor:
    """lb [n_layers, width]."""
    return module()[:, 0].exp()


def test_initial_bounds_rise_evenly_to_one_less_a_share():
    lb = bounds_of(table(24))
    assert_close(lb, (torch.arange(24).double() / 24)[:, None].expand(24, 3), 1e-12)
    assert lb[-1, 0].item() == pytest.approx(0.958, abs=5e-4)


@pytest.mark.parametrize("n_layers", [1, 2, 7])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_bounds_are_the_published_cumulated_softmax(n_layers, spread):
    module = table(n_layers, spread=spread)
    share = module.table.softmax(0)
    lb = share.cumsum(0) - share[0]
    floor, rest = module().unbind(1)
    assert_close(floor.exp(), lb, 1e-12)
    assert_close(rest.exp(), 1 - lb, 1e-12)
    assert not floor[0].exp().any() and not rest[0].any()
    assert (floor.diff(dim=0) > 0).all()


def test_gradients_of_the_table_are_the_numerical_ones():
    module = table(4, spread=1.0)
    logits = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)

    def gates(gamma: Tensor, logits: Tensor) -> Tensor:
        bounds = torch.func.functional_call(module, {"table": gamma}, ())
        return torch.stack([torch.stack(forget_gate(x, b)) for x, b in zip(logits, bounds, strict=True)])

    assert torch.autograd.gradcheck(gates, (module.table, logits))


@pytest.mark.parametrize("shift", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_gates_and_gradients_are_finite_at_every_extreme(shift, row):
    module = table(3).float()
    with torch.no_grad():
        module.table[row] += shift
    logits = torch.tensor([-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4])[:, None].expand(7, 3).clone().requires_grad_()
    for layer, bounds in enumerate(module()):
        log_f, write = forget_gate(logits, bounds)
        assert log_f.isfinite().all() and (log_f <= 0).all() and ((write >= 0) & (write <= 1)).all(), layer
        gradients = torch.autograd.grad((log_f + write).sum(), (logits, module.table), retain_graph=True)
        assert all(g.isfinite().all() for g in gradients), layer


@pytest.mark.parametrize("lb", [0.0, 1e-6, 0.5, 1 - 1e-6])
def test_gates_near_zero_and_one_keep_their_digits(lb):
    logits = torch.linspace(-60, 60, 61)
    exact = logits.double()
    f = lb + (1 - lb) * exact.sigmoid()
    bounds = torch.tensor([[lb], [1 - lb]], dtype=torch.float64).log().float()
    log_f, write = forget_gate(logits, bounds)
    assert ((write.double() / ((1 - lb) * (-exact).sigmoid())) - 1).abs().amax() < 1e-5
    # the log of a float32 bound near 1 has float32's spacing there, not the log's own
    assert (log_f.double() - f.log()).abs().amax() < 1e-5 * f.log().abs().amax() + 1e-7


def test_layer_zero_is_bounded_by_nothing():
    logits = torch.randn(50, dtype=torch.float64)
    for mine, plain in zip(forget_gate(logits, table(5, 1)()[0]), forget_gate(logits, None), strict=True):
        assert torch.equal(mine, plain)


# in a model


def test_rows_belong_to_layers_of_the_whole_stack():
    model, ids = build(n_layers=4, pattern=["hgrn", "attention"]), tokens(1, 12)
    rows = {}
    for block in model.layers():
        if block.kind == "hgrn":
            block.mixer.register_forward_pre_hook(lambda m, args: rows.update({m.index: args[3]}))
    model(ids)
    assert {i: row[0].exp().mean().item() for i, row in rows.items()} == pytest.approx({0: 0.0, 2: 0.5})
    assert model.shared["hgrn"].table.shape == (4, 32)


def test_a_row_that_nobody_reads_still_counts_in_the_softmax():
    model, ids = build(n_layers=2, pattern=["attention", "hgrn"]), tokens(1, 12)
    before = model(ids).logits
    with torch.no_grad():
        model.shared["hgrn"].table[0] += 5.0
    assert not torch.allclose(model(ids).logits, before)


def test_one_table_per_mixer_with_stable_names():
    model = build(n_layers=4, pattern=["hgrn2", "hgrn", "attention", "hgrn"])
    names = [name for name, _ in model.named_parameters() if name.startswith("shared")]
    assert names == ["shared.hgrn2.table", "shared.hgrn.table"]
    assert not build(pattern=["attention"]).shared
    other = build(seed=1, n_layers=4, pattern=["hgrn2", "hgrn", "attention", "hgrn"])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens(1, 9)).logits, model(tokens(1, 9)).logits)


def test_layers_of_different_widths_are_refused():
    with pytest.raises(ConfigError) as error:
        build(layers=["hgrn", {"hgrn": {"expand_ratio": 2}}])
    assert str(error.value) == (
        "hgrn: layers with gates of 32 and 64 channels cannot share the model's table of lower bounds; "
        "give all of them the same sizes"
    )


def test_the_table_learns_stays_float32_and_does_not_decay():
    model, ids = build(n_layers=3, pattern=["hgrn"]), tokens(2, 30)
    model(ids, labels=ids).loss.backward()
    gradient = model.shared["hgrn"].table.grad
    assert (gradient.abs().amax(1) > 0).all()
    rest = next(g for g in parameter_groups(model, 0.1) if g["name"] == "rest")
    assert any(p is model.shared["hgrn"].table for p in rest["params"])
    for cast in (model.bfloat16(), model.half(), model.to(torch.bfloat16)):
        assert cast.shared["hgrn"].table.dtype == torch.float32
    assert model.double().shared["hgrn"].table.dtype == torch.float64
