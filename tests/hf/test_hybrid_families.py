"""Models of GatedDeltaNet and attention as transformers' own: logits, what comes back, and what is refused."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, OlmoHybridConfig

from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.lm.hf.formats import choose_format
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.hf.helpers import assert_same_bits, build, section, tokens
from hybridlm.tests.hf.hybrids import OLMO, QWEN
from hybridlm.tests.oracles import assert_close

CLASSES = {"olmo_hybrid": "OlmoHybridForCausalLM", "qwen3_5": "Qwen3_5ForCausalLM"}


@torch.no_grad()
def logits(model, T: int = 40) -> torch.Tensor:
    return model(tokens(2, T)).logits.float()


def trained(dtype: torch.dtype, **options) -> HybridLM:
    """With embeddings as large as what layers add, as in a trained model: it rounds like one."""
    model = build(**options, init_std=0.04)
    with torch.no_grad():
        model.embed.weight.mul_(30)
    return model.to(dtype)


def agree(model: HybridLM, folder, format: str, dtype: torch.dtype = torch.float32) -> None:
    """An export is `format`'s class in transformers with our logits, and comes back with the same bits."""
    assert choose_format(model.config) == format
    save_pretrained(model, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert type(theirs).__name__ == CLASSES[format]
    assert_close(logits(theirs), logits(model), 1e-5 if dtype == torch.float32 else 1e-2, "logits")
    assert_same_bits(load_pretrained(folder), model)


@pytest.mark.parametrize("rope", [None, {"theta": 5e4}])
@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_olmo_hybrid(no_fla, tmp_path, rope, negative, dtype):
    options = {
        **OLMO,
        "attention": {**OLMO["attention"], "rope": rope},
        "gated_deltanet": {**OLMO["gated_deltanet"], "allow_negative_eigenvalues": negative},
        "tie_embeddings": negative,
    }
    agree(trained(dtype, **options), tmp_path / "out", "olmo_hybrid", dtype)


QWENS = {
    "half of a head turns": {},
    "all of a head turns": {"attention": {"rope": {"fraction": 1.0}}},
    "odd heads, of which little turns": {
        "attention": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 9, "rope": {"fraction": 0.25}}
    },
    "attention first": {"pattern": ["attention", "gated_deltanet"]},
    "as many key as value heads": {"gated_deltanet": {"n_heads": 3, "n_v_heads": 3, "head_dim": 5, "v_head_dim": 5}},
    "untied": {"tie_embeddings": False},
}


def qwen(changes: dict) -> dict:
    return QWEN | {key: QWEN[key] | value if isinstance(value, dict) else value for key, value in changes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", QWENS)
def test_qwen3_5(no_fla, tmp_path, case, dtype):
    agree(trained(dtype, **qwen(QWENS[case])), tmp_path / "out", "qwen3_5", dtype)


def test_qwen3_5_decodes_alike(no_fla, tmp_path):
    """The gate and the channels that do not turn, through the caches of both."""
    model = build(**QWEN)
    save_pretrained(model, tmp_path / "out")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = tokens(2, 11)
    found = theirs.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(model.generate(ids, 20, temperature=0), found)


@pytest.mark.parametrize(("recipe", "format"), [("olmo-hybrid", "olmo_hybrid"), ("qwen3-5", "qwen3_5")])
def test_recipes(no_fla, tmp_path, recipe, format):
    torch.manual_seed(0)
    agree(HybridLM(Recipe.load(recipe, ["model.vocab_size=61"]).model).eval(), tmp_path / "out", format)


@pytest.mark.parametrize("options", [OLMO, QWEN], ids=["olmo_hybrid", "qwen3_5"])
def test_what_theirs_writes_comes_back_bitwise(no_fla, tmp_path, options):
    """A folder that transformers itself saved: read, and exported equal in every tensor to what it had read."""
    model = build(**options)
    save_pretrained(model, tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    read = load_pretrained(tmp_path / "theirs")
    assert_same_bits(read, model)
    save_pretrained(read, tmp_path / "again")
    assert_same_bits(*(load_file(tmp_path / name / "model.safetensors") for name in ("again", "ours")))


def test_a_model_that_transformers_made_comes_back(no_fla, tmp_path):
    """It names norms otherwise in a model that it has not loaded, and cuts the kernels of q, k and v into thirds."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    sizes |= {"linear_key_head_dim": 10, "linear_value_head_dim": 14, "vocab_size": 61, "pad_token_id": None}
    config = OlmoHybridConfig(**sizes)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "out")
    assert_close(logits(load_pretrained(tmp_path / "out")), logits(theirs), 1e-5, "logits")


def test_every_option_that_is_no_olmo_hybrid_is_named():
    attention = {"n_heads": 4, "head_dim": 6, "window": 5, "rope": {"scaling": "linear", "factor": 2.0}}
    pattern = ["gated_deltanet", {"gated_deltanet": {"conv_size": 2, "norm_eps": 1e-6}}, "attention", "gla"]
    model = section(pattern=pattern, attention=attention, logit_softcap=3.0, ffn={"bias": True})
    refused(
        model,
        "olmo_hybrid",
        "layers is ['attention', 'gated_deltanet', 'gla'], needs attention and gated_deltanet, and no other",
        "logit_softcap is 3.0, needs None",
        "ffn.bias is True, needs False",
        "attention.norm is 'pre', needs 'post'",
        "attention.qk_norm is 'none', needs 'full'",
        "attention.window is 5, needs None",
        "attention.head_dim is 6, needs d_model / n_heads, which is 8",
        "attention.rope.scaling is 'linear', needs 'none'",
        "gated_deltanet.norm_eps is 1e-06, needs 1e-05",
        "gated_deltanet.conv_size is [4, 2], needs one value for all layers",
    )
    refused(
        section(**qwen({"attention": {"norm": "post", "head_dim": 8}})),
        "olmo_hybrid",
        "zero_centered_norms is True, needs False",
        "attention.gate is True, needs False",
        "attention.rope.fraction is 0.5, needs 1.0",
    )


def test_every_option_that_is_no_qwen3_5_is_named():
    refused(
        section(**OLMO | {"norm_eps": 1e-6, "attention": OLMO["attention"] | {"rope": None}}),
        "qwen3_5",
        "zero_centered_norms is False, needs True",
        "attention.gate is False, needs True",
        "attention.norm is 'post', needs 'pre'",
        "attention.qk_norm is 'full', needs 'head'",
        "attention.rope is None, needs RoPE",
        "gated_deltanet.norm_eps is 1e-05, needs 1e-06",
    )
    refused(
        section(**qwen({"gated_deltanet": {"allow_negative_eigenvalues": True}})),
        "qwen3_5",
        "gated_deltanet.allow_negative_eigenvalues is True, needs False",
    )


@pytest.mark.parametrize(("options", "format"), [(OLMO, "olmo_hybrid"), (QWEN, "qwen3_5")])
def test_a_feed_forward_of_another_width_is_named(options, format):
    widths = {"attention": options["attention"] | {"ffn_hidden": 40}, "ffn": {"hidden": 48}}
    words = "ffn_hidden is {'gated_deltanet': 48, 'attention': 40}, needs one width for all layers"
    refused(section(**options | widths), format, words)


@pytest.mark.parametrize("option", [{"gate": True}, {"rope": {"fraction": 0.5}}])
def test_gates_and_still_channels_are_no_llama(option):
    assert (
        choose_format(section(pattern=["attention"], attention={"n_heads": 4, "head_dim": 8, **option})) == "hybridlm"
    )
    assert choose_format(section(pattern=["attention"], zero_centered_norms=True)) == "hybridlm"


def refused(model, format: str, *words: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose_format(model, format)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"attn_output_gate": False}, "attn_output_gate is False, only True is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
        ({"layer_types": ["mamba", "full_attention", "mamba"]}, "layer_types has mamba"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn', only 'default'"),
        ({"model_type": "qwen3_next"}, "Qwen3-Next has experts"),
        ({"rope_parameters": None}, "'rope_theta' missing; get the whole file"),
        ({"hidden_size": None}, "'hidden_size' missing; get the whole file"),
        ({"rms_norm_eps": None}, "'rms_norm_eps' missing; get the whole file"),
        ({"layer_types": None}, "'layer_types' missing; get the whole file"),
    ],
)
def test_configurations_that_are_not_read(tmp_path, changes, word):
    save_pretrained(build(**QWEN), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ConfigError, match=word):
        load_pretrained(tmp_path / "out")


def test_sizes_that_are_null(tmp_path):
    save_pretrained(build(**OLMO), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": None}))
    with pytest.raises(ConfigError, match="'num_attention_heads' missing; get the whole file"):
        load_pretrained(tmp_path / "out")
