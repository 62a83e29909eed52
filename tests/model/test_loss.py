"""Sliced cross entropy against F.cross_entropy: sums, z-loss, softcap, ignored targets, gradients, precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.lm.model import loss
from hybridlm.lm.model.loss import IGNORE, full_cross_entropy, linear_cross_entropy, row_slices, shift_labels
from hybridlm.lm.parts.context import Context
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close

CPU = torch.device("cpu")
V, D = 37, 12


def make(shape=(3, 20), dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, D, generator=rng, dtype=torch.float64)
    weight = torch.randn(V, D, generator=rng, dtype=torch.float64)
    targets = torch.randint(V, shape, generator=rng)
    targets.view(-1)[1::4] = IGNORE
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def oracle(
    x: Tensor, weight: Tensor, targets: Tensor, z_weight: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """nll and z sums of the whole logits, and nll + z_weight z."""
    logits = x @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    nll = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    z = (logits.logsumexp(-1) ** 2)[targets != IGNORE].sum()
    return nll + z_weight * z, nll, z


@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_sums_and_gradients(z_weight, softcap, rows, monkeypatch):
    monkeypatch.setattr(loss, "SLICE", rows * V)  # slices of 1, 7 and all rows
    x, weight, targets = make()
    found = linear_cross_entropy(x, weight, targets, z_weight=z_weight, softcap=softcap)
    expected = oracle(x, weight, targets, z_weight, softcap)
    assert found.n_targets == 45
    for mine, theirs in zip((found.total, found.nll, found.z), expected, strict=True):
        assert_close(mine, theirs, 1e-6)
    gradients = torch.autograd.grad(3 * found.total, (x, weight))
    for mine, theirs in zip(gradients, torch.autograd.grad(3 * expected[0], (x, weight)), strict=True):
        assert_close(mine, theirs, 1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradcheck(softcap):
    x, weight, targets = make((1, 5), torch.float64)

    def total(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, targets, z_weight=0.2, softcap=softcap).total

    assert gradcheck(total, (x, weight))


def test_gradient_of_one_input_alone():
    x, weight, targets = make()
    both = torch.autograd.grad(linear_cross_entropy(x, weight, targets).total, (x, weight))
    (dx,) = torch.autograd.grad(linear_cross_entropy(x, weight.detach(), targets).total, x)
    (dw,) = torch.autograd.grad(linear_cross_entropy(x.detach(), weight, targets).total, weight)
    assert torch.equal(dx, both[0]) and torch.equal(dw, both[1])


def test_no_gradient_is_formed_where_none_can_be_asked_for():
    x, weight, targets = make()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = linear_cross_entropy(x, weight, targets)
    assert counter.get_total_flops() == 2 * targets.numel() * weight.numel()  # the logits and nothing else
    assert_close(found.total, oracle(x, weight, targets, 0.0, None)[0], 1e-6)


@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_full_logits_give_the_same_sums(z_weight):
    x, weight, targets = make()
    found = full_cross_entropy(x @ weight.T, targets, z_weight)
    sliced = linear_cross_entropy(x, weight, targets, z_weight=z_weight)
    assert found.n_targets == sliced.n_targets
    for mine, other in zip(found[:3], sliced[:3], strict=True):
        assert_close(mine, other, 1e-6)


def test_nothing_to_predict():
    x, weight, targets = make()
    found = linear_cross_entropy(x, weight, torch.full_like(targets, IGNORE))
    assert found.n_targets == 0
    assert not found.total.any()
    dx, dw = torch.autograd.grad(found.total, (x, weight))
    assert not dx.any() and not dw.any()


def test_autocast_rounds_the_product_and_nothing_else():
    x, weight, targets = make((4, 200))
    exact = linear_cross_entropy(x, weight, targets, z_weight=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        low = linear_cross_entropy(x, weight, targets, z_weight=0.1)
    assert low.total.dtype == torch.float32
    rounded = oracle(x.bfloat16().float(), weight.bfloat16().float(), targets, 0.1, None)[0]
    # the logits leave the product as bfloat16, whose errors of 2^-9 average out over 600 targets
    assert_close(low.total, rounded, 1e-3)
    found, expected = (torch.autograd.grad(sums.total, (x, weight)) for sums in (low, exact))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, theirs, 1e-2)


def test_bfloat16_sums_are_float32():
    x, weight, targets = make((4, 200), torch.bfloat16)
    found = linear_cross_entropy(x, weight, targets)
    assert found.total.dtype == torch.float32
    assert_close(found.total, oracle(x.float(), weight.float(), targets, 0.0, None)[0], 1e-3)


def test_labels_shift_within_sequences():
    labels = torch.arange(10)[None]
    packed = Context.documents_after((1, 0, 3, 6), None, CPU)
    assert shift_labels(labels, packed)[0].tolist() == [IGNORE, 2, 3, IGNORE, 5, 6, 7, 8, 9, IGNORE]
    dense = Context.dense(2, 5, None, CPU)
    expected = [[1, 2, 3, 4, IGNORE], [6, 7, 8, 9, IGNORE]]
    assert shift_labels(labels.view(2, 5), dense).tolist() == expected


def test_model_loss_is_the_mean_over_targets_plus_the_z_loss():
    model, ids = build(z_loss=1e-2, logit_softcap=5.0), tokens(2, 30)
    labels = ids.clone()
    labels[0, 10:20] = IGNORE
    for keep_logits in (True, False):
        output = model(ids, labels=labels, logits=keep_logits)
        logits = model(ids).logits
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        z = 1e-2 * (logits.logsumexp(-1) ** 2)[targets != IGNORE].mean()
        assert_close(output.loss, nll + z, 1e-6)
        assert_close(output.aux_losses["z_loss"], z, 1e-6)
        assert (output.logits is not None) == keep_logits


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("label", [-1, -101, 61, 10**9])
def test_a_label_that_is_no_token_is_refused_with_and_without_logits(label, logits, monkeypatch):
    model, ids = build(pattern=["attention"]), tokens(2, 9)
    labels = ids.clone()
    labels[1, 3] = label
    with pytest.raises(ValueError, match=f"labels: {label} is no token; allowed: 0 to 60, or -100"):
        model(ids, labels=labels, logits=logits)
    monkeypatch.setattr(loss.checks, "on_host", lambda x: False)  # as on a GPU, where nobody looks first
    with pytest.raises((IndexError, RuntimeError)):
        model(ids, labels=labels, logits=logits)


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    "labels", [tokens(2, 8), tokens(3, 9), tokens(9, 2), tokens(1, 9), tokens(1, 18)[0], tokens(2, 9) > 9]
)
def test_labels_that_are_not_one_per_token_are_refused(labels, padded, logits):
    """Read as if flat, longer rows would give a loss of shifted tokens."""
    mask = torch.ones(2, 9)
    mask[0, 0] = not padded
    with pytest.raises(ValueError, match=r"^labels: torch\.\w+ \(.*\), expected torch\.int64 \(2, 9\), one per token"):
        build(pattern=["attention"])(tokens(2, 9), labels=labels, attention_mask=mask, logits=logits)


@pytest.mark.parametrize("logits", [True, False])
def test_short_labels_count_as_long_ones(logits):
    model, ids = build(pattern=["attention"]), tokens(2, 9)
    assert torch.equal(model(ids, labels=ids.int(), logits=logits).loss, model(ids, labels=ids, logits=logits).loss)


def test_labels_of_padding_may_be_anything():
    model, ids = build(pattern=["attention"]), tokens(1, 9)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, 6:], mask[0, 6:] = -1, 0
    expected = model(ids[:, :6], labels=ids[:, :6]).loss
    assert_close(model(ids, labels=labels, attention_mask=mask).loss, expected, 1e-6)


def test_slices_cover_the_rows_in_order_each_with_as_many_logits_as_may_exist():
    assert list(row_slices(10, 5, 20)) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(row_slices(2, 50, 20)) == [slice(0, 1), slice(1, 2)]  # one row at least
    assert list(row_slices(0, 5, 20)) == []
