"""The nodes that torch.compile sees in an operator's place: fake results, gradients and writes as the real ones."""

import pytest
import torch
from torch.library import opcheck

from hybridlm.kernels import (
    banded_attention,
    gated_delta_rule,
    gated_linear_attention,
    gated_scan,
    head_routed_attention,
)
from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.tests.oracles import assert_close

OPS = torch.ops.hybridlm
B, T, H, K, V = 2, 5, 2, 4, 6
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def leaf(*shape, low=-1.0, high=1.0):
    return torch.empty(shape).uniform_(low, high).requires_grad_()


def call_of(name, batch=B, g=True, state=True, dtype=torch.float32):
    """Tensors of an operator by name."""
    gates, n = {"gated_linear_attention": (batch, T, H, K)}.get(name, (batch, T, 2 * H)), batch
    if name == "gated_scan":
        x = leaf(batch, T, H, K)
        return [x, leaf(batch, T, H, K, low=-1, high=0), leaf(n, H, K) if state else None]
    heads = 2 * H if name == "gated_delta_rule" else H
    q, k, v = (leaf(batch, T, h, d).to(dtype) for h, d in ((H, K), (H, K), (heads, V)))
    given = [q, k, v, leaf(*gates, low=-1, high=0) if g else None]
    if name == "gated_delta_rule":
        given.append(leaf(batch, T, heads, low=0))
    return [*given, leaf(n, heads, K, V) if state else None]


def arguments_of(name, bounds=None, **how):
    tensors = call_of(name, **how)
    return (*tensors, bounds, "auto") if name == "gated_scan" else (*tensors, 0.5, bounds, 64, False, "auto")


NAMES = ("gated_delta_rule", "gated_linear_attention", "gated_scan")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{}, {"state": False}], ids=str)
def test_operators_are_ops_by_torchs_own_checks(name, how):
    opcheck(getattr(OPS, name).default, arguments_of(name, **how), test_utils=CHECKS)


@pytest.mark.parametrize("name", NAMES[:2])
def test_an_operator_without_a_gate_is_one_too(name):
    opcheck(getattr(OPS, name).default, arguments_of(name, g=False), test_utils=CHECKS)


def test_the_short_convolution_is_one_too():
    opcheck(OPS.causal_conv.default, (leaf(B, T + 3, K), leaf(K, 4), True), test_utils=CHECKS)


@pytest.mark.parametrize("learns", [True, False])
def test_the_loss_is_one_too(learns):
    from hybridlm.lm.model.loss import TRACED

    given = (leaf(7, K), leaf(11, K), torch.arange(7), 0.1, 5.0, learns, torch.float32)
    opcheck(TRACED, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_ops_that_write_their_state(name):
    *tensors, state = (None if x is None else x.detach() for x in call_of(name))
    rest = () if name == "gated_scan" else (0.5,)
    given = (*(x[:, 0].contiguous() for x in tensors), state, *rest, "auto")
    opcheck(getattr(OPS, f"{name}_step").default, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("op", "name"), [(gated_delta_rule, NAMES[0]), (gated_linear_attention, NAMES[1]), (gated_scan, NAMES[2])]
)
def test_documents_have_the_operators_own_values_and_gradients(op, name):
    tensors = call_of(name, batch=1)
    tensors[-1] = torch.cat((tensors[-1], tensors[-1])).detach().requires_grad_()
    bounds, rest = (0, 2, T), () if name == "gated_scan" else (0.5,)
    tail = () if name == "gated_scan" else (64, False)
    found = getattr(OPS, name)(*tensors, *rest, bounds, *tail, "auto")
    how = {} if name == "gated_scan" else {"scale": 0.5}
    expected = op(
        *tensors[:-1], initial_state=tensors[-1], output_final_state=True, sequences=Sequences(1, T, bounds), **how
    )
    weights = [torch.randn_like(x) for x in expected]
    grads = [torch.autograd.grad(results, tensors, weights) for results in (found, expected)]
    for mine, theirs in zip((*found, *grads[0]), (*expected, *grads[1]), strict=True):
        assert_close(mine.detach(), theirs.detach(), 1e-6)


def routed_call(batch=B):
    """q, k, v and a gate that is nowhere 0: opcheck moves it a little."""
    return [leaf(batch, T, 2 * H, K), leaf(batch, T, H, K), leaf(batch, T, H, K), leaf(batch, T, 2 * H, low=0.5)]


ATTENTION = pytest.mark.parametrize("op", [banded_attention, head_routed_attention], ids=lambda op: op.name)


def attention_call(op, batch=B):
    return routed_call(batch)[: 4 if op is head_routed_attention else 3]


@ATTENTION
@pytest.mark.parametrize("seen", [((), ()), ((0, 1), (2, 3))], ids=str)
def test_attention_is_one_too(op, seen):
    given = (*attention_call(op), *seen, None, "auto")
    opcheck(getattr(OPS, op.name).default, given, test_utils=CHECKS)


@ATTENTION
def test_a_step_of_attention_is_one_too(op):
    q, k, v, *gate = (x.detach() for x in attention_call(op))
    given = (q[:, 0].contiguous(), k, v, *(x[:, 0].contiguous() for x in gate))
    for seen in (torch.ones(B, T, dtype=torch.bool), torch.ones(B, T, H, dtype=torch.bool)):
        step = getattr(OPS, f"{op.name}_step").default
        opcheck(step, (*given, seen, "auto"), test_utils=("test_schema", "test_faketensor"))


@ATTENTION
def test_documents_of_attention_have_its_own_values_and_gradients(op):
    tensors, bounds = attention_call(op, 1), (0, 2, T)
    found = getattr(OPS, op.name)(*tensors, (1, 0), (2, 3), bounds, "auto")
    expected = op(*tensors, sink=[1, 0], window=[2, 3], sequences=Sequences(1, T, bounds))
    weight = torch.randn_like(expected)
    grads = [torch.autograd.grad(o, tensors, weight) for o in (found, expected)]
    for mine, theirs in zip((found, *grads[0]), (expected, *grads[1]), strict=True):
        assert_close(mine.detach(), theirs.detach(), 1e-6)
