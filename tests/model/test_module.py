"""What users of PyTorch do to a module: copies, files, frozen parts, recomputation, other parameters for a call."""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close

pytestmark = pytest.mark.parametrize("name", MIXERS)
IDS = tokens(2, 9)


def loss_of(model):
    return model(IDS, labels=IDS, logits=False).loss


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def expected(name):
    model = build(pattern=[name], tie_embeddings=False)
    loss_of(model).backward()
    return model, gradients(model)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
def test_a_copy_is_the_same_model_with_weights_of_its_own(name, copied):
    model, grads = expected(name)
    twin = copied(model)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    loss_of(twin).backward()
    found = gradients(twin)
    assert found.keys() == grads.keys()
    assert all(torch.equal(found[n], g) for n, g in grads.items())


def test_shared_memory_and_double_precision(name):
    model = build(pattern=[name])
    loss = loss_of(model).detach()
    assert torch.equal(loss_of(model.share_memory()).detach(), loss)
    exact = loss_of(model.double()).detach()
    assert exact.dtype == torch.float64 or exact.dtype == torch.float32
    assert_close(exact.float(), loss, 1e-5)


def test_a_state_dict_is_strict(name):
    model, state = build(pattern=[name]), build(pattern=[name]).state_dict()
    first = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({n: t for n, t in state.items() if n != first})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "more": torch.zeros(1)})


@pytest.mark.parametrize("trained", ["mixer", "ffn", "head", "embed"])
def test_parts_train_alone(name, trained):
    model, grads = expected(name)
    for n, p in model.named_parameters():
        p.requires_grad_(trained in n)
    loss_of(model).backward()
    found = gradients(model)
    assert found.keys() == {n for n in grads if trained in n}
    assert all(torch.equal(found[n], grads[n]) or (found[n] - grads[n]).norm() < 1e-5 * grads[n].norm() for n in found)


def recompute(model, reentrant):
    for block in model.layers():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=reentrant)


def test_recomputed_blocks_have_the_same_gradients(name):
    model, grads = expected(name)
    recompute(model, reentrant=False)
    loss_of(model).backward()
    found = gradients(model)
    assert found.keys() == grads.keys()
    for n, g in grads.items():
        assert_close(found[n], g, 1e-5, n)


def test_recomputation_that_would_lose_losses_is_refused(name):
    model = build(pattern=[name])
    recompute(model, reentrant=True)
    with pytest.raises(TypeError, match=r"block 0 returned a tuple; .* use_reentrant=False"):
        loss_of(model)


def test_a_call_with_other_parameters_uses_them(name):
    model, other = build(pattern=[name]), build(seed=1, pattern=[name])
    parameters = {n: p.detach().clone().requires_grad_() for n, p in other.named_parameters()}
    loss = torch.func.functional_call(model, parameters, (IDS,), {"labels": IDS, "logits": False}).loss
    assert_close(loss.detach(), loss_of(other).detach(), 1e-6)
    loss.backward()
    assert all(p.grad is not None for p in parameters.values())
    assert all(p.grad is None for p in model.parameters())
