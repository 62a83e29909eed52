"""Exported folders against what vLLM and SGLang read: names, shapes and keys, written down here from their loaders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridlm.lm.hf import save_pretrained
from hybridlm.tests.hf.helpers import VOCAB, build
from hybridlm.tests.hf.hybrids import OLMO, QWEN

D, FFN = 32, 72
# sizes of the models of `hybrids`: heads times width
Q, KV, K, V = 4 * 8, 2 * 8, 2 * 10, 4 * 14

MLP = {"mlp.gate_proj": (FFN, D), "mlp.up_proj": (FFN, D), "mlp.down_proj": (D, FFN)}
# vLLM 0.32, models/olmo_hybrid.py: parameters after its mapper, whose shards of conv1d have no joined form
OLMO_LINEAR = {
    **MLP,
    "input_layernorm": (D,),
    "post_attention_layernorm": (D,),
    "linear_attn.q_proj": (K, D),
    "linear_attn.k_proj": (K, D),
    "linear_attn.v_proj": (V, D),
    "linear_attn.g_proj": (V, D),
    "linear_attn.a_proj": (4, D),
    "linear_attn.b_proj": (4, D),
    "linear_attn.q_conv1d": (K, 1, 3),
    "linear_attn.k_conv1d": (K, 1, 3),
    "linear_attn.v_conv1d": (V, 1, 3),
    "linear_attn.o_norm": (14,),
    "linear_attn.o_proj": (D, V),
    "linear_attn.A_log": (4,),
    "linear_attn.dt_bias": (4,),
}
OLMO_FULL = {
    **MLP,
    "post_attention_layernorm": (D,),
    "post_feedforward_layernorm": (D,),
    "self_attn.q_proj": (Q, D),
    "self_attn.k_proj": (KV, D),
    "self_attn.v_proj": (KV, D),
    "self_attn.q_norm": (Q,),
    "self_attn.k_norm": (KV,),
    "self_attn.o_proj": (D, Q),
}
# vLLM 0.32, models/qwen3_5.py; SGLang 0.5.23, models/qwen3_5.py and qwen3_5_text.py
QWEN_LINEAR = {
    **MLP,
    "input_layernorm": (D,),
    "post_attention_layernorm": (D,),
    "linear_attn.in_proj_qkv": (2 * K + V, D),
    "linear_attn.in_proj_z": (V, D),
    "linear_attn.in_proj_b": (4, D),
    "linear_attn.in_proj_a": (4, D),
    "linear_attn.conv1d": (2 * K + V, 1, 3),
    "linear_attn.norm": (14,),
    "linear_attn.out_proj": (D, V),
    "linear_attn.A_log": (4,),
    "linear_attn.dt_bias": (4,),
}
QWEN_FULL = {
    **MLP,
    "input_layernorm": (D,),
    "post_attention_layernorm": (D,),
    "self_attn.q_proj": (2 * Q, D),
    "self_attn.k_proj": (KV, D),
    "self_attn.v_proj": (KV, D),
    "self_attn.q_norm": (8,),
    "self_attn.k_norm": (8,),
    "self_attn.o_proj": (D, Q),
}
# keys that both read without a default, apart from those that have one value for every model
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": FFN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "dtype": "float32",
}
KEYS = {
    "olmo_hybrid": {
        "architectures": ["OlmoHybridForCausalLM"],
        "linear_allow_neg_eigval": False,
        # vLLM asks for rope_theta by name, and leaves positions out where it is null
        "rope_parameters": {"rope_type": "default", "rope_theta": None},
    },
    "qwen3_5_text": {
        "architectures": ["Qwen3_5ForCausalLM"],
        "head_dim": 8,
        "attn_output_gate": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
        # SGLang looks for these two at the top, and does not look at layer_types
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 3,
    },
}


def wanted(linear: dict, full: dict) -> dict[str, tuple[int, ...]]:
    layers = (linear, linear, full)
    found = {f"model.layers.{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer.items()}
    found |= {"model.embed_tokens": (VOCAB, D), "model.norm": (D,)}
    plain = ("A_log", "dt_bias")
    return {name if name.endswith(plain) else f"{name}.weight": shape for name, shape in found.items()}


@pytest.mark.parametrize(
    ("kind", "options", "tensors"),
    [
        ("olmo_hybrid", OLMO | {"attention": OLMO["attention"] | {"rope": None}}, wanted(OLMO_LINEAR, OLMO_FULL)),
        ("qwen3_5_text", QWEN, wanted(QWEN_LINEAR, QWEN_FULL)),
    ],
)
def test_servers_find_what_they_read(tmp_path: Path, kind, options, tensors):
    save_pretrained(build(**options, ffn={"hidden": FFN}), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == kind
    for name, value in (SIZES | KEYS[kind]).items():
        assert config[name] == value, name
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == tensors


def test_untied_heads_have_a_name(tmp_path: Path):
    for i, options in enumerate((OLMO, QWEN)):
        save_pretrained(build(**options, tie_embeddings=False), tmp_path / str(i))
        assert load_file(tmp_path / str(i) / "model.safetensors")["lm_head.weight"].shape == (VOCAB, D)


def test_sglang_is_told_no_interval_that_is_not_one(tmp_path: Path):
    """It would compute another model; without the key it stops."""
    pattern = ["attention", "gated_deltanet", "gated_deltanet"]
    save_pretrained(build(**{**QWEN, "pattern": pattern}), tmp_path / "out", format="qwen3_5")
    assert "full_attention_interval" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_decay_stays_float32_in_a_bf16_folder(tmp_path: Path):
    save_pretrained(build(**QWEN, dtype=torch.bfloat16), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name, x in stored.items() if x.dtype == torch.float32} == {
        f"model.layers.{i}.linear_attn.{name}" for i in (0, 1) for name in ("A_log", "dt_bias")
    }
