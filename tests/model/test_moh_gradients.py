"""Gradients of routing by norms where norms are near each other, few or equal."""

import pytest
import torch

from hybridlm.lm.mixers.attention.attention import Attention
from hybridlm.tests.model.routed import gates, inputs, layer
from hybridlm.tests.oracles import assert_close

BY_NORM = {"router": "query_norm", "straight_through": "dense"}


def norm_gradient(mixer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Of a weighted sum of the gates, by the layer's weights."""
    weight = torch.arange(1.0, 9.0, dtype=x.dtype)
    return torch.autograd.grad((gates(mixer, x) * weight).sum(), mixer.qkv_proj.weight)[0]


@pytest.mark.parametrize("shared", [2, 5, 6])
def test_float32_gradients_of_norms_that_are_near_each_other_are_those_of_float64(shared):
    """The long common part of all norms is in no gradient, nor its rounding."""
    found = []
    for dtype in (torch.float64, torch.float32):
        mixer = layer({**BY_NORM, "shared": shared, "active": 7}, torch.float64)
        with torch.no_grad():  # every head has nearly the query of the first
            queries = mixer.qkv_proj.weight[: mixer.n_heads * mixer.head_dim].unflatten(0, (mixer.n_heads, -1))
            queries.copy_(100 * queries[:1] + 0.1 * queries)
        found.append(norm_gradient(mixer.to(dtype), inputs().to(dtype)))
    exact, rounded = found
    assert exact.norm() > 1e-3
    assert_close(rounded.double(), exact, 1e-2)


def test_two_routed_heads_learn_by_their_norms():
    mixer = layer({**BY_NORM, "shared": 6, "active": 7})
    scores = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    assert torch.equal(mixer.heads.normalised(scores), scores)
    assert norm_gradient(mixer, inputs()).norm() > 0.1


def test_equal_heads_do_not_drown_the_gradients_of_a_step():
    mixer = layer({**BY_NORM, "shared": 2, "active": 5})
    with torch.no_grad():
        queries = mixer.qkv_proj.weight[: mixer.n_heads * mixer.head_dim].unflatten(0, (mixer.n_heads, -1))
        queries.copy_(queries[:1].clone())
    assert 0 < norm_gradient(mixer, inputs()).norm() < 1e3
