"""The balance loss of routed heads (arXiv 2410.11842, sec. 3.3), and what a step reports of their use."""

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.lm.mixers.attention.balance import balance_loss
from hybridlm.lm.mixers.attention.head_options import BalanceConfig
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.model.routed import documents, gates, inputs, layer, route, rows
from hybridlm.tests.oracles import assert_close

HEADS: dict[str, Any] = {"shared": 2, "active": 5}
LENGTHS = [5, 1, 0, 9, 20]


def printed(p: Tensor, used: Tensor) -> float:
    """sum_i P_i f_i over the tokens of p [T, R], as the paper prints it."""
    tokens = range(len(p))
    P = [sum(p[t, i].item() for t in tokens) / len(p) for i in range(p.shape[1])]
    f = [sum(bool(used[t, i]) for t in tokens) / len(p) for i in range(p.shape[1])]
    return sum(a * b for a, b in zip(P, f, strict=True))


def drawn(T: int, R: int = 6, K: int = 3) -> tuple[Tensor, Tensor]:
    p = torch.randn(1, T, R, generator=torch.Generator().manual_seed(T), dtype=torch.float64).softmax(-1)
    used = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(K).indices, True)
    return p, used


# the loss


def test_the_code_s_loss_is_the_paper_s_times_the_number_of_routed_heads():
    p, used = drawn(50)
    paper, code = (
        balance_loss(p, used, rows(p), BalanceConfig(form=form, over="micro_batch")) for form in ("sum", "scaled")
    )
    assert paper.item() == pytest.approx(printed(p[0], used[0]), rel=1e-12)
    assert code.item() == pytest.approx(6 * paper.item(), rel=1e-12)


def test_even_use_costs_the_share_of_active_heads_and_collapse_costs_more():
    p = torch.full((1, 6, 6), 1 / 6, dtype=torch.float64)
    even = torch.stack([torch.arange(6).roll(t) < 3 for t in range(6)])[None]
    collapsed = (torch.arange(6) < 3).expand(1, 6, 6)
    for form, expected in (("sum", 0.5), ("scaled", 3.0)):
        options = BalanceConfig(form=form)
        assert balance_loss(p, even, rows(p), options).item() == pytest.approx(expected, rel=1e-12)
        # a router that is sure of the heads it always takes
        sure = collapsed.double() / 3
        assert balance_loss(sure, collapsed, rows(p), options).item() == pytest.approx(2 * expected, rel=1e-12)


def test_documents_count_by_their_targets():
    p, used = drawn(sum(LENGTHS))
    parts = zip(p[0].split(LENGTHS), used[0].split(LENGTHS), LENGTHS, strict=True)
    expected = sum((n - 1) * printed(a, b) for a, b, n in parts if n > 1) / sum(n - 1 for n in LENGTHS if n > 1)
    found = balance_loss(p, used, documents(LENGTHS), BalanceConfig(form="sum"))
    assert found.item() == pytest.approx(expected, rel=1e-6)  # weights of documents are float32
    together = balance_loss(p, used, documents(LENGTHS), BalanceConfig(form="sum", over="micro_batch"))
    assert together.item() == pytest.approx(printed(p[0], used[0]), rel=1e-12)


def test_documents_of_one_token_have_no_target_and_no_balance():
    p, used = drawn(4)
    assert balance_loss(p, used, documents([1, 1, 0, 1, 1]), BalanceConfig()).item() == 0


def test_rows_are_documents():
    p, used = (x.reshape(5, 10, 6) for x in drawn(50))
    expected = balance_loss(p.reshape(1, 50, 6), used.reshape(1, 50, 6), documents([10] * 5), BalanceConfig())
    assert_close(balance_loss(p, used, rows(p), BalanceConfig()), expected, 1e-7)


def test_the_use_of_heads_has_no_gradient_and_the_probabilities_that_of_their_weights():
    p, used = drawn(20)
    p.requires_grad_()
    balance_loss(p, used, rows(p), BalanceConfig(form="sum")).backward()
    expected = (used.double().mean(1, keepdim=True) / 20).expand_as(p)
    assert_close(p.grad, expected, 1e-12)


@pytest.mark.parametrize(("reduce", "expected"), [("mean", 0.01 * 3), ("sum", 0.01 * 3 * 2)])
def test_layers_are_averaged_unless_they_are_to_be_summed(reduce, expected):
    """Of a new router, whose probabilities are 1/6 each, every layer's loss is the number of routed heads in use."""
    options = {"n_heads": 8, "head_dim": 4, "heads": {**HEADS, "balance": {"reduce": reduce}}}
    model = build(n_layers=3, pattern=["moh", "gated_deltanet", "moh"], moh=options)
    output = model(tokens(2, 12), labels=tokens(2, 12))
    assert output.aux_losses["balance"].item() == pytest.approx(expected, rel=1e-5)


def test_both_routers_are_trained_by_the_balance():
    """The published LLaMA code has no balance loss."""
    for heads in (HEADS, {**HEADS, "router": "query_norm"}):
        mixer = layer(heads)
        route(mixer, inputs()).losses["balance"].backward()
        trained = mixer.router if heads is HEADS else mixer.qkv_proj.weight
        assert trained.grad.abs().sum() > 0


def test_a_weight_of_nothing_is_no_loss():
    assert route(layer({**HEADS, "balance": {"coef": 0}}), inputs()).losses == {}


# however a batch is cut


def balance_of(model, ids: Tensor, **how: Any) -> float:
    return model(ids, labels=ids, **how).aux_losses["balance"].item()


@torch.no_grad()
def test_the_balance_of_documents_is_the_same_however_a_batch_is_cut():
    model = build(pattern=["moh"], moh={"n_heads": 8, "head_dim": 4, "heads": HEADS})
    for mixer in model.mixers():
        mixer.router.normal_()
    lengths = [n for n in LENGTHS if n]
    docs = [tokens(1, n, seed=i) for i, n in enumerate(lengths)]
    together = balance_of(model, torch.cat(docs, 1), sequences=Sequences.documents(lengths))
    alone = [model(doc, labels=doc).aux_losses.get("balance", 0.0) for doc in docs]
    weighted = sum(float(loss) * (n - 1) for loss, n in zip(alone, lengths, strict=True)) / sum(n - 1 for n in lengths)
    assert together == pytest.approx(weighted, rel=1e-5)


@torch.no_grad()
def test_padding_is_not_balanced():
    model = build(pattern=["moh"], moh={"n_heads": 8, "head_dim": 4, "heads": HEADS})
    for mixer in model.mixers():
        mixer.router.normal_()
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :12] = 0
    first, second = tokens(2, 20), tokens(2, 20)
    second[0, :12] = 3
    one, other = (balance_of(model, ids, attention_mask=mask) for ids in (first, second))
    packed = torch.cat((first[0, 12:], first[1]))[None]
    assert one == other == pytest.approx(balance_of(model, packed, sequences=Sequences.documents([8, 20])), rel=1e-6)


def test_recomputed_blocks_count_their_balance_once():
    """The published code appends it to a list of the class, twice where a forward runs again."""
    model = build(pattern=["moh"], moh={"n_heads": 8, "head_dim": 4, "heads": HEADS}).train()
    ids = tokens(2, 12)
    plain = model(ids, labels=ids)
    plain.loss.backward()
    gradient = model.blocks[0].mixer.router.grad.clone()
    model.zero_grad()
    for block in model.layers():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    again = model(ids, labels=ids)
    again.loss.backward()
    assert torch.equal(again.aux_losses["balance"], plain.aux_losses["balance"])
    assert torch.equal(model.blocks[0].mixer.router.grad, gradient)
    assert all(torch.equal(again.stats[i]["routing"], plain.stats[i]["routing"]) for i in range(2))


# what is reported


@pytest.mark.parametrize("heads", [{"shared_heads": [4, 1], "active": 5}, {**HEADS, "router": "query_norm"}])
def test_a_step_reports_the_use_of_each_head(heads):
    mixer, x = layer(heads), inputs(2, 30)
    stats = route(mixer, x).stats
    again = route(mixer, x[:, :20]).stats
    found = mixer.on_step({"routing": stats["routing"] + again["routing"]})
    g = torch.cat([gates(mixer, part).flatten(0, 1) for part in (x, x[:, :20])])
    use = (g != 0).double().mean(0)
    assert found["activation"] == pytest.approx(use.tolist(), rel=1e-12)
    routed = [use[i].item() for i in mixer.heads.routed_heads]
    mean = [value / sum(routed) for value in routed]
    entropy = -sum(value * math.log(value) for value in mean if value)
    assert found["effective_heads"] == pytest.approx(math.exp(entropy), rel=1e-12)
    balance = [route(mixer, part).losses["balance"].item() / 0.01 for part in (x, x[:, :20])]
    assert found["balance"] == pytest.approx((2 * 29 * balance[0] + 2 * 19 * balance[1]) / (2 * 29 + 2 * 19), rel=1e-9)
    assert 0 < found["router_entropy"] < math.log(6)
    if mixer.options.heads.router == "query_norm":
        q = mixer.projection(mixer, torch.cat((x, x[:, :20]), 1)).q.unflatten(-1, (8, 4))
        assert found["query_norm"] == pytest.approx(q.norm(dim=-1).mean((0, 1)).tolist(), rel=1e-9)
    else:
        assert "query_norm" not in found


def test_groups_report_each_head_of_theirs():
    mixer = layer({"route": "groups", "shared": 2, "active": 6}, n_kv_heads=4)
    x = inputs(2, 30)
    found = mixer.on_step(route(mixer, x).stats)
    assert found["activation"] == pytest.approx((gates(mixer, x) != 0).double().mean((0, 1)).tolist(), rel=1e-12)
    assert 2 * 2 <= found["effective_heads"] <= 6


def test_attention_with_all_heads_reports_nothing():
    mixer = layer(None)
    assert route(mixer, inputs()) == (None, {}, {}) and mixer.on_step({}) == {}
