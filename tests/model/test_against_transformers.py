"""The decoder against transformers' Llama and OLMo Hybrid with the same weights: logits, loss, gradients."""

import sys
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from hybridlm.lm import HybridLM
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.tests.model.helpers import tokens
from hybridlm.tests.oracles import assert_close

VOCAB = 61
FORWARD, GRADIENT = 1e-5, 1e-4
Weights = dict[str, Tensor]
Rename = Callable[[Weights, int], Weights]


def shake(model: nn.Module) -> None:
    """Weights of trained size, norms away from 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(
                1 + 0.2 * noise if "norm" in name else parameter + 0.15 * noise if parameter.ndim == 1 else 0.15 * noise
            )


def ffn(theirs: Weights, layer: str, block: str) -> Weights:
    return joined(theirs, f"{layer}.mlp", f"{block}.ffn", {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)})


def joined(theirs: Weights, layer: str, block: str, parts: dict[str, Iterable[str]]) -> Weights:
    """Projections of ours made of several of theirs, weights and, where there are any, biases."""
    return {
        f"{block}.{name}.{kind}": torch.cat([theirs[f"{layer}.{p}_proj.{kind}"] for p in these])
        for name, these in parts.items()
        for kind in ("weight", "bias")
        if all(f"{layer}.{p}_proj.{kind}" in theirs for p in these)
    }


def attention(theirs: Weights, layer: str, block: str) -> Weights:
    mine = joined(theirs, f"{layer}.self_attn", f"{block}.mixer", {"qkv_proj": "qkv", "o_proj": "o"})
    norms = {f"{block}.mixer.{p}_norm.weight": theirs.get(f"{layer}.self_attn.{p}_norm.weight") for p in "qk"}
    return mine | {name: weight for name, weight in norms.items() if weight is not None}


def gated_deltanet(theirs: Weights, layer: str, block: str) -> Weights:
    def of(name: str) -> Tensor:
        return theirs[f"{layer}.linear_attn.{name}"]

    parts = {"qkv_proj": "qkv", "ab_proj": "ab", "g_proj": "g", "o_proj": "o"}
    mine = joined(theirs, f"{layer}.linear_attn", f"{block}.mixer", parts)
    same = {f"{block}.mixer.{name}": of(name) for name in ("A_log", "dt_bias", "o_norm.weight")}
    return mine | same | {f"{block}.mixer.conv": of("conv1d.weight").squeeze(1)}


def outside(theirs: Weights) -> Weights:
    head = theirs.get("lm_head.weight", theirs["model.embed_tokens.weight"])
    return {
        "embed.weight": theirs["model.embed_tokens.weight"],
        "norm.weight": theirs["model.norm.weight"],
        "lm_head.weight": head,
    }


def from_llama(theirs: Weights, n_layers: int) -> Weights:
    mine = outside(theirs)
    for i in range(n_layers):
        layer, block = f"model.layers.{i}", f"blocks.{i}"
        mine |= attention(theirs, layer, block) | ffn(theirs, layer, block)
        mine[f"{block}.mixer_norm.weight"] = theirs[f"{layer}.input_layernorm.weight"]
        mine[f"{block}.ffn_norm.weight"] = theirs[f"{layer}.post_attention_layernorm.weight"]
    return mine


def from_olmo_hybrid(theirs: Weights, n_layers: int) -> Weights:
    mine = outside(theirs)
    for i in range(n_layers):
        layer, block = f"model.layers.{i}", f"blocks.{i}"
        linear = f"{layer}.linear_attn.A_log" in theirs
        norms = ("input", "post_attention") if linear else ("post_attention", "post_feedforward")
        mine |= (gated_deltanet if linear else attention)(theirs, layer, block) | ffn(theirs, layer, block)
        mine[f"{block}.mixer_norm.weight"] = theirs[f"{layer}.{norms[0]}_layernorm.weight"]
        mine[f"{block}.ffn_norm.weight"] = theirs[f"{layer}.{norms[1]}_layernorm.weight"]
    return mine


def compare(mine: HybridLM, theirs: nn.Module, rename: Rename, T: int) -> None:
    """Logits, loss and every gradient; a tied head's gradient is the embedding's."""
    n_layers = len(mine.blocks)
    mine.load_state_dict(rename(dict(theirs.state_dict()), n_layers))
    ids = tokens(2, T, VOCAB)
    expected, found = theirs(input_ids=ids, labels=ids), mine(ids, labels=ids)
    assert_close(found.logits, expected.logits, FORWARD, "logits")
    assert_close(found.loss, expected.loss, FORWARD, "loss")
    assert_close(mine(ids, labels=ids, logits=False).loss, expected.loss, FORWARD, "loss without logits")
    expected.loss.backward()
    found.loss.backward()
    gradients = rename({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}, n_layers)
    for name, parameter in mine.named_parameters():
        assert parameter.grad is not None, name
        assert_close(parameter.grad, gradients[name], GRADIENT, f"gradient of {name}")


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES = {
    "plain": ({}, {}),
    "grouped queries": ({"num_key_value_heads": 2}, {"attention": {"n_kv_heads": 2}}),
    "one key head": ({"num_key_value_heads": 1}, {"attention": {"n_kv_heads": 1}}),
    "wide heads": ({"head_dim": 24}, {"attention": {"head_dim": 24}}),
    "theta": ({"rope_parameters": {"rope_theta": 5e5}}, {"attention": {"rope": {"theta": 5e5}}}),
    "linear scaling": (
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
        {"attention": {"rope": {"scaling": "linear", "factor": 4.0}}},
    ),
    "llama3 scaling": (
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        {"attention": {"rope": {"theta": 5e5, "scaling": "llama3", "factor": 8.0, "original_context": 64}}},
    ),
    "yarn": (
        {"rope_parameters": {"rope_theta": 1e4, **YARN}},
        {"attention": {"rope": {"scaling": "yarn", "factor": 4.0, "original_context": 64}}},
    ),
    "yarn with all its options": (
        {
            "rope_parameters": {
                "rope_theta": 5e5,
                **YARN,
                "beta_fast": 8.0,
                "beta_slow": 2.0,
                "attention_factor": 0.9,
                "truncate": False,
            }
        },
        {
            "attention": {
                "rope": {
                    "theta": 5e5,
                    "scaling": "yarn",
                    "factor": 4.0,
                    "original_context": 64,
                    "beta_fast": 8.0,
                    "beta_slow": 2.0,
                    "attention_factor": 0.9,
                    "truncate": False,
                }
            }
        },
    ),
    "biases": (
        {"attention_bias": True, "mlp_bias": True},
        {"attention": {"bias": "all"}, "ffn": {"hidden": 80, "bias": True}},
    ),
    "tied head": ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_model_is_llama(case):
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs, mine = CASES[case]
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    how = {"attn_implementation": "eager", "rms_norm_eps": 1e-6, "max_position_embeddings": 512}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **{**sizes, **ends, **how, **theirs})).eval()
    heads = {"n_heads": 4, "head_dim": 12} | mine.get("attention", {})
    config = {"tie_embeddings": False, "ffn": {"hidden": 80}, **mine, "attention": heads}
    model = HybridLM(ModelConfig(vocab_size=VOCAB, d_model=48, n_layers=2, pattern=["attention"], **config)).eval()
    shake(llama)
    compare(model, llama, from_llama, T=100)


@pytest.fixture
def olmo_hybrid(monkeypatch):
    """transformers' OLMo Hybrid on its PyTorch path: an installed fla would replace it by a Triton kernel."""
    for name in [name for name in sys.modules if name.split(".")[0] == "fla" or "olmo_hybrid" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fla", None)
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid

    return modeling_olmo_hybrid


@pytest.mark.parametrize("T", [5, 63, 130])
@pytest.mark.parametrize(("rope", "key_heads"), [(1e4, 4), (None, 4), (1e4, 2)])
def test_three_to_one_is_olmo_hybrid(olmo_hybrid, rope, key_heads, T):
    from transformers import OlmoHybridConfig

    linear = {"linear_num_key_heads": key_heads, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 10, "linear_value_head_dim": 14, "attn_implementation": "eager"}
    theirs = OlmoHybridConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_theta": rope, "rope_type": "default"},
        pad_token_id=None,
        eos_token_id=None,
        **linear,
    )
    oracle = olmo_hybrid.OlmoHybridForCausalLM(theirs).eval()
    shake(oracle)
    delta = {"n_heads": key_heads, "n_v_heads": 4, "head_dim": 10, "v_head_dim": 14, "allow_negative_eigenvalues": True}
    heads = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "norm": "post", "qk_norm": "full"}
    config = ModelConfig(
        vocab_size=VOCAB,
        d_model=48,
        n_layers=4,
        ratio={"gated_deltanet": 3, "attention": 1},
        gated_deltanet=delta,
        attention={**heads, "rope": {"theta": rope} if rope else None},
        ffn={"hidden": 80},
        tie_embeddings=False,
    )
    compare(HybridLM(config).eval(), oracle, from_olmo_hybrid, T)
