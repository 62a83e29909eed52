"""What Qwen3-Next adds: an output gate, RoPE on a part of each head, norms whose weight is centred on 0."""

import pytest
import torch

from hybridlm.lm.parts.context import Context
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.parts.norm import RMSNorm
from hybridlm.lm.parts.rope import inverse_frequencies, rotate, rotation
from hybridlm.lm.parts.rope_config import RopeConfig
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close

HEADS = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 12}


def mixer(**attention):
    return next(build(pattern=["attention"], attention=HEADS | attention).mixers())


@torch.no_grad()
def test_an_open_gate_is_none_and_a_shut_one_lets_nothing_through():
    gated, plain = mixer(gate=True), mixer()
    x = torch.randn(2, 9, 32)
    rows = gated.qkv_proj.weight[:48].view(2, 2, 12, 32)  # head, q or gate
    plain.qkv_proj.weight.copy_(torch.cat((rows[:, 0].flatten(0, 1), gated.qkv_proj.weight[48:])))
    plain.o_proj.weight.copy_(gated.o_proj.weight)
    (found,), (expected,) = run((gated,), x), run((plain,), x)
    assert not torch.allclose(found, expected, rtol=0.1)
    rows[:, 1] = 0  # sigmoid(0) = 1 / 2
    assert_close(run((gated,), x)[0], expected / 2, 1e-6)
    rows[1, 1] = -1e4 * torch.sign(x[0, 0])  # the second head's, at the first token
    plain.o_proj.weight[:, 12:] = 0
    assert_close(run((gated,), x)[0][0, 0], run((plain,), x)[0][0, 0] / 2, 1e-6)


def run(mixers, x):
    return [mixer(x, Context.dense(*x.shape[:2], None, x.device)).y for mixer in mixers]


def test_gates_count_as_parameters_and_flops():
    gated, plain = mixer(gate=True), mixer()
    assert gated.flops_per_token(7) - plain.flops_per_token(7) == 2 * 32 * 24
    assert gated.state_bytes(7) == plain.state_bytes(7)


@pytest.mark.parametrize("options", [{"gate": True}, {"gate": True, "qk_norm": "full", "rope": {"fraction": 0.5}}])
def test_decoding_is_the_parallel_form(options):
    model = build(pattern=["attention"], attention=HEADS | options, zero_centered_norms=True)
    ids = tokens(2, 12)
    with torch.no_grad():
        whole, cache = model(ids).logits, model(ids[:, :5], cache=True).cache
        steps = [model(ids[:, [t]], cache=cache).logits for t in range(5, 12)]
    assert_close(torch.cat(steps, 1), whole[:, 5:], 1e-5)


def test_a_fraction_turns_the_first_channels_as_a_narrower_head_would():
    config, x, positions = RopeConfig(theta=77.0, fraction=0.5), torch.randn(2, 7, 3, 12), torch.arange(7).expand(2, 7)
    found = rotate(x, *rotation(config, 12, positions))
    assert torch.equal(found[..., 6:], x[..., 6:])
    narrow = rotation(RopeConfig(theta=77.0), 6, positions)
    assert torch.equal(found[..., :6], rotate(x[..., :6], *narrow))
    assert inverse_frequencies(RopeConfig(fraction=0.25), 256).shape == (32,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_centred_norms_multiply_by_one_and_the_weight(dtype):
    norm = RMSNorm(33, 1e-5, zero_centered=True).to(dtype)
    x = torch.randn(5, 33).to(dtype).requires_grad_()
    assert not norm.weight.any()
    with torch.no_grad():
        norm.weight.add_(torch.randn(33) * 0.01)
    exact, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    expected = exact * (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (1 + weight)
    dy = torch.randn(5, 33).to(dtype)
    norm(x).backward(dy)
    expected.backward(dy.double())
    assert x.grad is not None and norm.weight.grad is not None
    bound = 1e-6 if dtype == torch.float32 else 4e-3
    assert norm(x).dtype == dtype
    for found, wanted in ((norm(x), expected), (x.grad, exact.grad), (norm.weight.grad, weight.grad)):
        assert_close(found.double(), wanted, bound)


def test_a_model_of_them_starts_where_the_usual_one_does():
    ids = tokens(2, 9)
    centred, usual = (build(zero_centered_norms=flag, attention={"qk_norm": "head"}) for flag in (True, False))
    assert_close(centred(ids).logits, usual(ids).logits, 1e-6)
    norms = {name for name, p in centred.named_parameters() if name.endswith("norm.weight") and not p.any()}
    assert norms == {name for name, _ in usual.named_parameters() if name.endswith("norm.weight")} - {
        "blocks.0.mixer.o_norm.weight"
    }


@pytest.mark.parametrize(
    ("attention", "word"),
    [
        ({"head_dim": 12, "rope": {"fraction": 0.1}}, "0.1 of head_dim=12 turns 1 channels"),
        ({"head_dim": 12, "rope": {"fraction": 0.05}}, "turns 0 channels"),
        ({"rope": {"fraction": 1.5}}, "less than or equal to 1"),
        ({"freeze_qk": True, "gate": True}, "use false with freeze_qk"),
    ],
)
def test_bad_options(attention, word):
    with pytest.raises((ConfigError, ValueError), match=word):
        ModelConfig(pattern=["attention"], attention=attention)
