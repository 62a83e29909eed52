"""Contracts 4 to 6: packing, padding and neighbours change nothing for a document."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.lm import HybridLM
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import (
    FORWARD,
    Build,
    assert_same_gradients,
    bounds,
    gradients,
    scores,
    tokens,
    weights_like,
)
from hybridlm.tests.oracles import assert_close

LENGTHS = [1, 2, 3, 63, 64, 65, 1, 20, 64]


def documents(lengths: list[int], seed: int = 0) -> list[Tensor]:
    return [tokens(1, n, seed=seed + i) for i, n in enumerate(lengths)]


# packing


def check_packed_logits_and_gradients(build: Build) -> None:
    model, docs = build(), documents(LENGTHS)
    packed = model(torch.cat(docs, 1), cu_seqlens=bounds(LENGTHS)).logits
    weights = weights_like(packed)
    (packed * weights).sum().backward()
    found = gradients(model)
    alone = torch.cat([model(doc).logits for doc in docs], 1)
    (alone * weights).sum().backward()
    for part, own, n in zip(packed.split(LENGTHS, 1), alone.split(LENGTHS, 1), LENGTHS, strict=True):
        assert_close(part, own, FORWARD, f"logits of a document of {n} tokens")
    assert_same_gradients(found, gradients(model))


@torch.no_grad()
def check_packed_loss(build: Build) -> None:
    lengths = [*LENGTHS, *[1, 2] * 20]  # as many ends, which are no targets, as to show in the mean
    model, docs = build(), documents(lengths)
    ids, cu_seqlens = torch.cat(docs, 1), bounds(lengths)
    nll = [F.cross_entropy(scores(model, d)[0, :-1], d[0, 1:], reduction="sum") for d in docs if d.shape[1] > 1]
    expected = torch.stack(nll).sum() / sum(n - 1 for n in lengths)
    for logits in (True, False):
        output = model(ids, labels=ids, cu_seqlens=cu_seqlens, logits=logits)
        auxiliary = sum(output.aux_losses.values())
        assert_close(output.loss - auxiliary, expected, FORWARD, f"loss with logits={logits}")


@torch.no_grad()
def check_packed_state(build: Build) -> None:
    """Prefill packed documents, one of them empty, and continue them by pieces of unequal length, packed again."""
    first, second = [1, 40, 0, 64, 3], [30, 1, 5, 2, 70]
    model, heads, tails = build(), documents(first), documents(second, seed=20)
    cache = model(torch.cat(heads, 1), cu_seqlens=bounds(first), cache=True).cache
    logits = model(torch.cat(tails, 1), cu_seqlens=bounds(second), cache=cache).logits
    for n, (head, tail, part) in enumerate(zip(heads, tails, logits.split(second, 1), strict=True)):
        alone = model(torch.cat((head, tail), 1), cache=True)
        assert_close(part, alone.logits[:, head.shape[1] :], FORWARD, f"continuation of document {n}")
        assert_same_rows(cache.select([n]), alone.cache)


def assert_same_rows(found, alone) -> None:
    """Growing states of unequal rows carry slots behind the shorter ones' ends; only the filled ones count."""
    for mine, own in zip(found.layers, alone.layers, strict=True):
        for name, tensor in own.tensors().items():
            row = mine.tensors()[name][tuple(slice(size) for size in tensor.shape)]
            assert_close(row, tensor, FORWARD, f"state {name}")
    assert found.lengths == alone.lengths


# padding


def layouts(real: list[int], T: int) -> dict[str, Tensor]:
    """Masks [B, T] with `real` tokens in each row: at the end, at the start, and scattered."""
    right = torch.stack([torch.arange(T) < n for n in real])
    scattered = torch.zeros(len(real), T, dtype=torch.bool)
    for row, n in enumerate(real):
        scattered[row, torch.randperm(T, generator=torch.Generator().manual_seed(row))[:n]] = True
    return {"left": right.flip(1), "right": right, "interior": scattered}


def padded(docs: list[Tensor], mask: Tensor) -> Tensor:
    """The documents laid out where the mask is, arbitrary tokens elsewhere."""
    ids = tokens(*mask.shape, seed=99)
    ids[mask] = torch.cat(docs, 1)[0]
    return ids


def check_padding(build: Build) -> None:
    real = [1, 66, 20, 70]
    model, docs = build(), documents(real)
    alone = torch.cat([model(doc).logits for doc in docs], 1)[0]  # [sum(real), V]
    weights = weights_like(alone)
    (alone * weights).sum().backward()
    expected = gradients(model)
    for where, mask in layouts(real, 70).items():
        logits = model(padded(docs, mask), attention_mask=mask.long()).logits[mask]
        assert_close(logits, alone, FORWARD, f"logits with {where} padding")
        (logits * weights).sum().backward()
        assert_same_gradients(gradients(model), expected)


@torch.no_grad()
def check_padded_loss(build: Build) -> None:
    real = [1, 66, 20, 70]
    model, docs = build(), documents(real)
    nll = [F.cross_entropy(scores(model, d)[0, :-1], d[0, 1:], reduction="sum") for d in docs if d.shape[1] > 1]
    expected = torch.stack(nll).sum() / sum(n - 1 for n in real)
    for where, mask in layouts(real, 70).items():
        ids = padded(docs, mask)
        output = model(ids, labels=ids, attention_mask=mask)
        assert_close(output.loss - sum(output.aux_losses.values()), expected, FORWARD, f"loss with {where} padding")


@torch.no_grad()
def check_padded_prefill(build: Build) -> None:
    """Prefill with padding, then decode: the rows have unequal pasts from there on."""
    real, steps = [1, 66, 20, 70], 5
    model, docs, more = build(), documents(real), tokens(4, steps, seed=50)
    expected = torch.cat([scores(model, torch.cat((d, more[i : i + 1]), 1))[:, -steps:] for i, d in enumerate(docs)])
    for where, mask in layouts(real, 70).items():
        cache = model(padded(docs, mask), attention_mask=mask, cache=True).cache
        assert cache.lengths == real
        logits = [model(more[:, :2], cache=cache).logits]
        logits += [model(more[:, i : i + 1], cache=cache).logits for i in range(2, steps)]
        assert_close(torch.cat(logits, 1), expected, FORWARD, f"decoding after {where} padding")


# neighbours


@torch.no_grad()
def check_neighbours(build: Build) -> None:
    model, ids = build(), tokens(5, 80)
    together = scores(model, ids)
    for row in range(5):
        assert_close(together[row : row + 1], scores(model, ids[row : row + 1]), FORWARD, "a row alone")
    others = tokens(5, 80, seed=1)
    others[3] = ids[3]
    others[0] = 0  # one neighbour is degenerate
    assert_close(scores(model, others)[3], together[3], FORWARD, "a row with other neighbours")


@torch.no_grad()
def check_decoding_neighbours(build: Build) -> None:
    model, ids = build(), tokens(3, 30)
    cache = model(ids[:, :20], cache=True).cache
    single = cache.select([1])
    for t in range(20, 30):
        together = model(ids[:, t : t + 1], cache=cache).logits[1:2]
        assert_close(together, model(ids[1:2, t : t + 1], cache=single).logits, FORWARD, "a row decoded alone")


CHECKS = [
    check_packed_logits_and_gradients,
    check_packed_loss,
    check_packed_state,
    check_padding,
    check_padded_loss,
    check_padded_prefill,
    check_neighbours,
    check_decoding_neighbours,
]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check, build):
    check(build)


@pytest.mark.parametrize(
    ("check", "mixer", "kind"),
    [
        (check_packed_logits_and_gradients, broken.JoinsDocuments, HybridLM),
        (check_packed_logits_and_gradients, broken.ConvolvesAcrossDocuments, HybridLM),
        (check_packed_loss, broken.JoinsDocuments, HybridLM),
        (check_packed_loss, broken.LeakyMemory, broken.PredictsAcrossDocuments),
        (check_packed_state, broken.StartsAfresh, HybridLM),
        (check_padding, broken.CountsRows, HybridLM),
        (check_padding, broken.ConvolvesAcrossDocuments, HybridLM),
        (check_padding, broken.LeakyMemory, broken.IgnoresTheMask),
        (check_padded_loss, broken.LeakyMemory, broken.IgnoresTheMask),
        (check_padded_prefill, broken.CountsRows, HybridLM),
        (check_padded_prefill, broken.ForgetsSteps, HybridLM),
        (check_neighbours, broken.CentresOverTheBatch, HybridLM),
        (check_decoding_neighbours, broken.CentresOverTheBatch, HybridLM),
    ],
)
def test_broken_mixer_fails(check, mixer, kind, register):
    with pytest.raises(AssertionError):
        check(register(mixer, kind))
