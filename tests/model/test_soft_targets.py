"""Distributions beside labels, sliced like the cross entropy, against F.kl_div over whole logits in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.lm.model import loss
from hybridlm.lm.model.loss import IGNORE, SoftTargets, TokenLoss, linear_cross_entropy
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close

V, D, E = 37, 12, 20
ROWS = 60


def make(dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight, targets of which a quarter are none, and the teacher's x and weight."""
    rng = torch.Generator().manual_seed(0)
    x, theirs = (torch.randn(3, 20, n, generator=rng, dtype=torch.float64) for n in (D, E))
    weight, their_weight = (torch.randn(V, n, generator=rng, dtype=torch.float64) for n in (D, E))
    targets = torch.randint(V, (3, 20), generator=rng)
    targets.view(-1)[1::4] = IGNORE
    return (
        *(x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets),
        *(theirs.to(dtype), their_weight.to(dtype)),
    )


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def oracle(x, weight, targets, soft: SoftTargets, z_weight: float, softcap: float | None) -> tuple[Tensor, ...]:
    """total, nll, z and kl from whole logits by PyTorch's own losses."""
    kept = targets.flatten() != IGNORE
    mine = capped(x @ weight.T, softcap).flatten(0, -2)[kept]
    theirs = capped(soft.hidden @ soft.weight.T, soft.softcap).flatten(0, -2)[kept]
    nll = F.cross_entropy(mine, targets.flatten()[kept], reduction="sum")
    z = mine.logsumexp(-1).square().sum()
    log_p, log_q = ((logits / soft.temperature).log_softmax(-1) for logits in (mine, theirs))
    kl = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    total = (1 - soft.share) * nll + soft.share * soft.temperature**2 * kl + z_weight * z
    return total, nll, z, kl


def sums(found: TokenLoss) -> tuple[Tensor, ...]:
    return found.total, found.nll, found.z, found.kl


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("temperature", "share", "their_cap"), [(1.0, 0.5, None), (2.5, 1.0, 5.0), (0.5, 0.0, None)])
def test_sums_and_gradients(rows, z_weight, softcap, temperature, share, their_cap, monkeypatch):
    monkeypatch.setattr(loss, "SLICE", rows * V)
    x, weight, targets, theirs, their_weight = make()
    soft = SoftTargets(theirs, their_weight, their_cap, temperature, share)
    found = linear_cross_entropy(x, weight, targets, z_weight=z_weight, softcap=softcap, soft=soft)
    expected = oracle(x, weight, targets, soft, z_weight, softcap)
    for mine, other in zip(sums(found), expected, strict=True):
        assert_close(mine, other, 1e-12)
    gradients = torch.autograd.grad(3 * found.total, (x, weight))
    for mine, other in zip(gradients, torch.autograd.grad(3 * expected[0], (x, weight)), strict=True):
        assert_close(mine, other, 1e-12)


def test_gradcheck():
    x, weight, targets, theirs, their_weight = make()
    soft = SoftTargets(theirs[:1, :5], their_weight, 4.0, 2.0, 0.7)

    def total(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, targets[:1, :5], z_weight=0.2, softcap=3.0, soft=soft).total

    assert gradcheck(total, (x[:1, :5].detach().requires_grad_(), weight))


def test_float32_and_bfloat16_products_are_near_the_float64_oracle():
    exact = make()
    expected = oracle(*exact[:3], SoftTargets(*exact[3:], None, 2.0, 0.5), 0.0, None)
    wanted = torch.autograd.grad(expected[0], exact[:2])
    x, weight, targets, theirs, their_weight = make(torch.float32)
    soft = SoftTargets(theirs, their_weight, None, 2.0, 0.5)
    found = linear_cross_entropy(x, weight, targets, soft=soft)
    with torch.autocast("cpu", torch.bfloat16):
        low = linear_cross_entropy(x, weight, targets, soft=soft)
    for sums_found, bound in ((found, 1e-5), (low, 2e-2)):  # logits leave the product with errors of 2^-9
        assert sums_found.kl.dtype == torch.float32
        assert_close(sums_found.kl, expected[3], bound)
        for mine, other in zip(torch.autograd.grad(sums_found.total, (x, weight)), wanted, strict=True):
            assert_close(mine, other, bound)


def test_a_teacher_like_the_student_is_at_no_distance_and_pulls_nowhere():
    x, weight, targets, *_ = make(torch.float32)
    found = linear_cross_entropy(x, weight, targets, soft=SoftTargets(x, weight, None, 2.0, 1.0))
    assert found.kl == 0 and not any(g.any() for g in torch.autograd.grad(found.total, (x, weight)))


def test_a_share_of_nothing_is_the_loss_of_the_labels():
    x, weight, targets, theirs, their_weight = make()
    alone = linear_cross_entropy(x, weight, targets, z_weight=0.1)
    beside = linear_cross_entropy(x, weight, targets, z_weight=0.1, soft=SoftTargets(theirs, their_weight, share=0.0))
    assert torch.equal(alone.total, beside.total) and alone.kl == 0 and beside.kl > 1


def test_the_teacher_gets_no_gradient():
    x, weight, targets, theirs, their_weight = make()
    total = linear_cross_entropy(
        x, weight, targets, soft=SoftTargets(theirs.requires_grad_(), their_weight.requires_grad_())
    ).total
    total.backward()
    assert theirs.grad is None and their_weight.grad is None and x.grad is not None


def test_one_product_with_each_head_and_two_for_the_gradient():
    x, weight, targets, theirs, their_weight = make()
    soft = SoftTargets(theirs, their_weight)
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(x, weight, targets, soft=soft)
    assert counter.get_total_flops() == 2 * ROWS * V * (3 * D + E)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear_cross_entropy(x, weight, targets, soft=soft)
    assert counter.get_total_flops() == 2 * ROWS * V * (D + E)


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside has had."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            self.most = max(self.most, one.numel() if isinstance(one, Tensor) else 0)
        return result


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_no_tensor_is_larger_than_a_slice_of_the_logits(softcap, monkeypatch):
    monkeypatch.setattr(loss, "SLICE", 40 * V)
    x, weight, targets, theirs, their_weight = make()
    with Largest() as seen:
        soft = SoftTargets(theirs, their_weight, softcap)
        linear_cross_entropy(x, weight, targets, softcap=softcap, soft=soft).total.backward()
    assert seen.most == 40 * V  # and ROWS * V are all of them


@pytest.mark.parametrize(("hidden", "weight"), [((3, 19, E), (V, E)), ((3, 20, E), (V + 1, E)), ((3, 20, E), (V, D))])
def test_soft_targets_of_other_shapes_are_refused(hidden, weight):
    x, mine, targets, *_ = make()
    with pytest.raises(ValueError, match=r"^soft: hidden .* and weight .*, expected a row for each of 60 tokens"):
        linear_cross_entropy(x, mine, targets, soft=SoftTargets(torch.zeros(hidden), torch.zeros(weight)))


def whole(model, teacher, ids, labels, share, temperature) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of one sequence, its ce and kl summed, from whole logits in float64."""
    mine, theirs = (m(ids).logits[0, :-1].double() for m in (model, teacher))
    kept = labels[0, 1:] != IGNORE
    ce = F.cross_entropy(mine[kept], labels[0, 1:][kept], reduction="sum")
    log_p, log_q = ((x[kept] / temperature).log_softmax(-1) for x in (mine, theirs))
    kl = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return (1 - share) * ce + share * temperature**2 * kl, ce, kl


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_a_models_loss_leaves_out_the_targets_across_documents_and_padding(kind):
    model, teacher = build(pattern=["attention"]), build(seed=1, pattern=["gated_deltanet"])
    documents = [tokens(1, n, seed=n) for n in (5, 1, 9)]
    labels = [ids.clone() for ids in documents]
    labels[2][0, 4:6] = IGNORE
    sums = [whole(model, teacher, ids, label, 0.3, 2.0) for ids, label in zip(documents, labels, strict=True)]
    loss_sum, ce, kl = (sum(parts) for parts in zip(*sums, strict=True))
    n = 4 + 0 + 6
    if kind == "packed":
        ids, label = torch.cat(documents, 1), torch.cat(labels, 1)
        given = {"cu_seqlens": torch.tensor([0, 5, 6, 15])}
    else:
        ids, label, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9)
        for row, (one, its) in enumerate(zip(documents, labels, strict=True)):
            at = slice(9 - one.shape[1], 9)
            ids[row, at], label[row, at], mask[row, at] = one[0], its[0], 1
        given = {"attention_mask": mask}
    with torch.no_grad():
        hidden = teacher(ids, logits=False, **given).hidden
    soft = SoftTargets(hidden, teacher.lm_head.weight, None, 2.0, 0.3)
    output = model(ids, labels=label, logits=False, soft=soft, **given)
    assert_close(output.loss, loss_sum / n, 1e-5)
    assert_close(output.terms["ce"], ce / n, 1e-5)
    assert_close(output.terms["kl"], kl / n, 1e-5)
    mine = torch.autograd.grad(output.loss, list(model.parameters()))
    for found, expected in zip(mine, torch.autograd.grad(loss_sum / n, list(model.parameters())), strict=True):
        assert_close(found, expected, 1e-4)


def test_without_soft_targets_there_are_no_terms():
    model, ids = build(pattern=["attention"]), tokens(1, 9)
    assert not model(ids, labels=ids, logits=False).terms and not model(ids).terms


def test_soft_targets_need_labels_and_logits_that_nobody_asked_for():
    model, ids = build(pattern=["attention"]), tokens(1, 9)
    soft = SoftTargets(model(ids).hidden, model.lm_head.weight)
    with pytest.raises(ValueError, match=r"^soft: needs labels, "):
        model(ids, soft=soft, logits=False)
    with pytest.raises(ValueError, match=r"^soft: needs logits=False and an output head"):
        model(ids, labels=ids, soft=soft)
    model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"^soft: needs logits=False and an output head"):
        model(ids, labels=ids, soft=soft, logits=False)


def test_uniform_soft_targets_have_the_distance_of_a_uniform_distribution():
    x, weight = torch.zeros(1, 4, D), torch.zeros(V, D)
    sharp = SoftTargets(torch.ones(1, 4, 1) * 1e4, torch.eye(V)[:, :1])  # all on token 0
    found = linear_cross_entropy(x, weight, torch.zeros(1, 4, dtype=torch.int64), soft=sharp)
    assert_close(found.kl, torch.tensor(4 * math.log(V)), 1e-6)
