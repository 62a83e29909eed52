"""Contract 11: torch.compile takes a model in one graph, whatever its mixers, for inputs of any length."""

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.conftest import VARIANTS
from hybridlm.tests.contracts.harness import (
    FORWARD,
    GRADIENT,
    Build,
    Builder,
    Logits,
    assert_same_gradients,
    gradients,
    scores,
    tokens,
)
from hybridlm.tests.oracles import assert_close

SHORT, LONG = (3, 4, 5), (40, 57, 70)
QUICK = ("gated_deltanet", "attention")


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiles(build: Build, backend: str, lengths: tuple[int, ...], logits: bool = True) -> None:
    """No break in a graph, at most two for three lengths, and the eager model's loss and gradients."""
    model = build()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for T in lengths:
        ids = tokens(2, T)
        try:
            output = compiled(ids, labels=ids, logits=logits)
        except TorchDynamoException as error:
            raise AssertionError(f"no whole graph: {error}") from error
        output.loss.backward()
        found = gradients(model)
        expected = model(ids, labels=ids, logits=logits)
        expected.loss.backward()
        assert_close(output.loss.detach(), expected.loss.detach(), FORWARD, f"loss at T={T}")
        assert_same_gradients(found, gradients(model), GRADIENT)
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for {len(lengths)} lengths"


def test_contract_of_a_hybrid():
    check_compiles(Builder(QUICK), "eager", SHORT, logits=False)


@pytest.mark.slow
@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("name", [*MIXERS, *VARIANTS.values()])
def test_contract(name, logits):
    check_compiles(Builder((name,)), "aot_eager", LONG, logits)


@pytest.mark.slow
def test_contract_by_inductor():
    check_compiles(Builder(("gated_deltanet", "hgrn", "gla", "attention")), "inductor", LONG)


@pytest.mark.slow
def test_lengths_become_a_size_by_themselves():
    model = Builder(QUICK)()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for T in (*SHORT, *LONG):
        compiled(tokens(2, T)).logits.sum().backward()
    assert counter.frame_count == 2


@pytest.mark.parametrize("mixer", [broken.LooksAtItsValues, broken.DependsOnItsLength])
def test_broken_mixer_fails(mixer, register):
    with pytest.raises(AssertionError):
        check_compiles(register(mixer), "eager", SHORT)


@torch.no_grad()
def test_an_exported_model_serves_every_length():
    model = Builder(QUICK)()
    lengths = {"ids": {1: torch.export.Dim("T", min=2, max=4096)}}
    exported = torch.export.export(Logits(model), (tokens(2, 9),), dynamic_shapes=lengths, strict=False).module()
    for T in LONG:
        assert_close(exported(tokens(2, T)), scores(model, tokens(2, T)), FORWARD, f"logits at T={T}")


@pytest.mark.parametrize("name", MIXERS)
def test_a_model_of_fake_tensors_goes_forward_and_backward(name):
    with FakeTensorMode():
        model = Builder((name,))()
        output = model(torch.zeros(2, 20, dtype=torch.long), labels=torch.zeros(2, 20, dtype=torch.long))
        output.loss.backward()
        assert all(p.grad.shape == p.shape for p in model.parameters())
    check = scores(Builder((name,))(), tokens(2, 20))
    assert type(check) is torch.Tensor and check.isfinite().all()
