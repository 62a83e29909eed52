"""Contract 7, seen from the registries: whatever operator a mixer calls, every backend of it gives the same model.

The operators' own tests compare backends tensor by tensor; this one finds a new operator, backend or mixer by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from hybridlm.kernels import available_backends, gated_delta_rule, operators
from hybridlm.kernels.backend import Backend, Policy
from hybridlm.kernels.operator import OPERATORS
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.context import Context
from hybridlm.tests.contracts.harness import (
    FORWARD,
    GRADIENT,
    Build,
    Builder,
    assert_same_gradients,
    bounds,
    gradients,
    tokens,
    weights_like,
)
from hybridlm.tests.oracles import assert_close

CPU = torch.device("cpu")
LENGTHS = [1, 30, 67, 64]


@contextmanager
def forced(op: str, name: str) -> Iterator[list[str]]:
    """Within, "auto" means backend `name` of `op`; gives the list of calls made to it."""
    before, calls = OPERATORS[op].backends, []

    def counted(arguments):
        calls.append(op)
        return before[name].function(arguments)

    OPERATORS[op].backends = {name: Backend(counted, Policy())}
    try:
        yield calls
    finally:
        OPERATORS[op].backends = before


def check_backend(build: Build, op: str, name: str) -> None:
    """Logits, parameters' gradients and the state of two packed calls and a step, against the operator's reference."""
    with forced(op, "reference") as calls:
        expected = _run(build)
    if not calls:
        pytest.skip(f"no registered mixer calls {op}")
    with forced(op, name):
        found = _run(build)
    for key, tensor in expected[0].items():
        assert_close(found[0][key], tensor, FORWARD, f"{key} with {op} by {name}")
    assert_same_gradients(found[1], expected[1], GRADIENT)


def _run(build: Build) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model, ids, cu_seqlens = build(), tokens(1, sum(LENGTHS)), bounds(LENGTHS)
    first = model(ids, cu_seqlens=cu_seqlens, cache=True)
    values = {"logits": first.logits.detach()}
    (first.logits * weights_like(first.logits)).sum().backward()
    first_gradients = gradients(model)
    second = model(ids, cu_seqlens=cu_seqlens, cache=first.cache)  # from an initial state
    values["continued logits"] = second.logits.detach()
    (second.logits * weights_like(second.logits)).sum().backward()
    with torch.no_grad():  # one token each, by the operators' steps
        values["stepped logits"] = model(tokens(1, 4), cu_seqlens=bounds([1] * 4), cache=second.cache).logits
    states = {f"{i}.{k}": t for i, layer in enumerate(second.cache.layers) for k, t in layer.tensors().items()}
    continued = {f"continued {name}": gradient for name, gradient in gradients(model).items()}
    return values | states, first_gradients | continued


def backends() -> list[tuple[str, str]]:
    """Every (operator, backend) that runs here, the references left out."""
    found = [(op, name) for op in operators() for name, reason in available_backends(op, CPU).items() if reason is None]
    return [(op, name) for op, name in found if name != "reference"]


@pytest.mark.parametrize(("op", "name"), backends())
def test_backends_agree(op, name):
    check_backend(Builder(tuple(MIXERS)), op, name)


def test_every_operator_has_a_reference():
    assert [op for op in operators() if available_backends(op, CPU)["reference"] is not None] == []


@pytest.mark.parametrize("mixer", MIXERS)
def test_reference_gradients_are_the_numerical_ones(mixer, monkeypatch):
    """float64 gradcheck of a whole mixer on packed sequences with a past, every operator by its reference."""
    for op in OPERATORS.values():
        monkeypatch.setattr(op, "backends", {"reference": op.backends["reference"]})
    module = next(Builder((mixer,))(d_model=16, n_layers=1).double().mixers())
    for parameter in module.parameters():
        parameter.data = parameter.data.double()
    x = torch.randn(1, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    past = module.new_state(3, torch.float64, CPU)
    with torch.no_grad():
        module(x, Context.documents_after((3, 1, 4), None, CPU), past)

    def mixed(x: Tensor, *parameters: Tensor) -> Tensor:
        state = module.new_state(3, torch.float64, CPU)
        state.load(past.tensors())
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        sequences = Context.documents_after((1, 5, 2), (3, 1, 4), CPU)
        return torch.func.functional_call(module, named, (x, sequences, state)).y

    assert torch.autograd.gradcheck(mixed, (x.requires_grad_(), *module.parameters()), fast_mode=True)


@pytest.mark.parametrize(
    "changes",
    [
        lambda x: {"initial_state": None},
        lambda x: {"scale": x.scale * 1.001},
        lambda x: {"initial_state": None if x.initial_state is None else x.initial_state.bfloat16().float()},
    ],
    ids=["forgets its initial state", "scale off by 0.1 %", "state rounded to bfloat16"],
)
def test_broken_backend_fails(changes, monkeypatch):
    right = gated_delta_rule.backends["reference"].function
    wrong = Backend(lambda x: right(x._replace(**changes(x))), Policy())
    monkeypatch.setitem(gated_delta_rule.backends, "native", wrong)
    with pytest.raises(AssertionError):
        check_backend(Builder(("gated_deltanet",)), "gated_delta_rule", "native")
