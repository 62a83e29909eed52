"""What a decoder may have or lack: learned positions, feed-forwards, biases, dropout."""

import pytest
import torch
import torch.nn.functional as F

from hybridlm.lm import HybridLM
from hybridlm.lm.parts.rope import rotate, rotation
from hybridlm.lm.parts.rope_config import RopeConfig
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close
from hybridlm.tools.summary import parameters_by_part

WITHOUT_ROPE = {"pattern": ["attention"], "attention": {"rope": None}}


def shaken(model: HybridLM) -> HybridLM:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_learned_positions_are_added_to_the_tokens():
    model = shaken(build(positions="learned", context=12, **WITHOUT_ROPE))
    ids = tokens(2, 12)
    x = model.embed.weight[ids] + model.pos_embed.weight
    for block in model.layers():
        x = _dense_block(block, x)
    assert_close(model(ids).hidden, model.norm(x), 1e-5)


def _dense_block(block, x):
    mixer = block.mixer
    q, k, v = (y.unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2) for y in _qkv(mixer, block.mixer_norm(x)))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + o @ mixer.o_proj.weight.T
    return x + block.ffn(block.ffn_norm(x))


def _qkv(mixer, x):
    return (x @ mixer.qkv_proj.weight.T).chunk(3, -1)


def test_learned_positions_start_anew_in_each_document_and_go_on_in_a_cache():
    model = shaken(build(positions="learned", context=12, **WITHOUT_ROPE))
    rows = [tokens(1, n, seed=n) for n in (5, 12, 7)]
    alone = torch.cat([model(row).logits for row in rows], 1)
    bounds = torch.tensor([0, 5, 17, 24])
    assert_close(model(torch.cat(rows, 1), cu_seqlens=bounds).logits, alone, 1e-5)
    start = model(rows[1][:, :4], cache=True)
    assert_close(model(rows[1][:, 4:], cache=start.cache).logits, model(rows[1]).logits[:, 4:], 1e-5)


def test_a_sequence_longer_than_its_learned_positions_is_refused():
    model = build(positions="learned", context=12, **WITHOUT_ROPE)
    with pytest.raises(ValueError, match=r"13 tokens in a sequence, but positions=learned has 12"):
        model(tokens(1, 13))
    full = model(tokens(2, 12), cache=True)
    with pytest.raises(ValueError, match=r"input_ids: 13 tokens"):
        model(tokens(2, 1), cache=full.cache)


def test_without_feed_forward_a_block_is_its_mixer():
    model = shaken(build(ffn=None))
    ids = tokens(2, 9)
    assert not any("ffn" in name for name, _ in model.named_parameters())
    assert "ffn" not in parameters_by_part(model)
    assert sum(parameters_by_part(model).values()) == sum(p.numel() for p in model.parameters())
    assert build().flops_per_token(9) - model.flops_per_token(9) == 2 * 2 * 3 * 32 * 128
    short = shaken(build(ffn=None, n_layers=1, pattern=["attention"], attention={"norm": "post"}))
    block, x = next(short.layers()), short.embed.weight[ids]
    width = block.mixer.head_dim
    q, k, v = (y.unflatten(-1, (-1, width)) for y in _qkv(block.mixer, x))
    cos, sin = rotation(RopeConfig(), width, torch.arange(9).expand(2, 9))
    heads = [y.transpose(1, 2) for y in (rotate(q, cos, sin), rotate(k, cos, sin), v)]
    o = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
    expected = short.norm(x + block.mixer_norm(o @ block.mixer.o_proj.weight.T))
    assert_close(short(ids).hidden, expected, 1e-5)


def test_biases_start_at_zero():
    model = build(pattern=["attention"], attention={"bias": "all"}, ffn={"bias": True})
    biases = {name for name, p in model.named_parameters() if name.endswith("bias") and not p.any()}
    parts = ("mixer.qkv_proj", "mixer.o_proj", "ffn.gate_up_proj", "ffn.down_proj")
    assert biases == {f"blocks.{i}.{part}.bias" for i in range(2) for part in parts}
    only_inside = build(pattern=["attention"], attention={"bias": "qkv"})
    assert {n for n, _ in only_inside.named_parameters() if n.endswith("bias")} == {
        f"blocks.{i}.mixer.qkv_proj.bias" for i in range(2)
    }


def test_embedding_dropout_drops_its_share_in_training_alone():
    model = build(dropout=0.25, d_model=64, pattern=["attention"])
    ids = tokens(8, 50)
    assert torch.equal(model(ids).logits, model(ids).logits)
    kept: list[torch.Tensor] = []
    next(model.layers()).register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    model.train()(ids)
    dropped = kept[0] == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert_close(kept[0][~dropped], (model.embed(ids) / 0.75)[~dropped], 1e-6)


@pytest.mark.parametrize(("window", "packed"), [(None, False), (None, True), (4, False), (4, True)])
def test_attention_dropout_keeps_the_mean(window, packed):
    model = shaken(build(n_layers=1, ffn=None, pattern=["attention"], attention={"dropout": 0.3, "window": window}))
    mixer = next(model.mixers())
    ids, bounds = tokens(1, 12), torch.tensor([0, 5, 12])
    outputs: list[torch.Tensor] = []
    mixer.register_forward_hook(lambda _module, _inputs, mixed: outputs.append(mixed.y))
    with torch.no_grad():
        for _ in range(3000):
            model.train()(ids, cu_seqlens=bounds if packed else None)
        model.eval()(ids, cu_seqlens=bounds if packed else None)
    *drawn, exact = outputs
    mean, spread = torch.stack(drawn).mean(0), torch.stack(drawn).std(0)
    assert (spread[0, 1:] > 0).any(-1).all()
    assert ((mean - exact).abs() <= 6 * spread / 3000**0.5 + 1e-6).all()


def test_hidden_vectors_come_back_where_the_tokens_were():
    model = shaken(build(logit_softcap=3.0))
    ids = tokens(2, 7)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0]])
    output = model(ids, attention_mask=mask)
    assert_close(model.head(output.hidden)[mask.bool()], output.logits[mask.bool()], 1e-6)
    assert not output.hidden[mask == 0].any()
    assert_close(model(ids, attention_mask=mask, logits=False).hidden, output.hidden, 1e-6)
