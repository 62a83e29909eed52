"""MoH-LLaMA3-8B as it was published: known by its config.json, and computed as its own code does (spec of that code:
half of the heads shared, a quarter more by the norm of the query in the model's dtype)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridlm.lm.hf import load_pretrained
from hybridlm.lm.hf.families.llama import recipe_section
from hybridlm.lm.hf.families.llama_moh import VOCABULARY, published_heads
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.hf.llamas import edit_config, ids, save
from hybridlm.tests.oracles import assert_close

AUTO_MAP = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
SIZES = {
    "hidden_size": 48,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
}


def as_published(theirs) -> None:
    """Each layer's heads masked between attention and its output projection, as the published code masks them."""
    for layer in theirs.model.layers:
        attention, n = layer.self_attn, theirs.config.num_attention_heads
        dim, shared, more = attention.head_dim, n // 2, n // 4
        masks: list[Tensor] = []

        def watch(_, __, q, dim=dim, shared=shared, more=more, masks=masks):
            norms = q.unflatten(-1, (-1, dim))[..., shared:, :].norm(dim=-1)
            p = (norms / norms.std(-1, keepdim=True)).softmax(-1)
            chosen = torch.zeros_like(p).scatter(-1, p.topk(more, -1).indices, 1)
            masks[:] = [torch.cat((torch.ones_like(q[..., :shared]), chosen), -1)]

        def mask(_, args, dim=dim, masks=masks):
            return (args[0] * masks[0].repeat_interleave(dim, -1),)

        attention.q_proj.register_forward_hook(watch)
        attention.o_proj.register_forward_pre_hook(mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    save(folder, **SIZES)
    edit_config(folder, auto_map=AUTO_MAP)
    return folder


@torch.no_grad()
def test_its_layout_is_known_and_computed_as_published(tmp_path, folder):
    from transformers import LlamaForCausalLM

    run = import_checkpoint(folder, tmp_path / "run")
    heads = run.recipe.model.layer_specs()[0].options.heads
    assert (heads.router, heads.shared_heads, heads.active) == ("query_norm", [0, 1, 2, 3], 6)
    assert heads.router_dtype == "model"
    theirs = LlamaForCausalLM.from_pretrained(folder).eval()
    assert_close(load_pretrained(folder)(ids()).logits, load_pretrained(run.folder)(ids()).logits, 0, "run")
    plain = theirs(ids()).logits
    as_published(theirs)
    published = theirs(ids()).logits
    assert_close(load_pretrained(folder)(ids()).logits, published, 1e-5, "logits")
    assert not torch.allclose(plain, published, atol=1e-2)


def config(**changes) -> dict:
    return {"model_type": "llama", "max_position_embeddings": 64, "auto_map": AUTO_MAP, **SIZES, **changes}


def test_the_published_sizes():
    found = recipe_section(config(num_attention_heads=32, num_key_value_heads=8, hidden_size=4096))["attention"][
        "heads"
    ]
    assert (found["shared"], found["active"]) == (16, 24)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": None},
        {"auto_map": {"AutoConfig": "configuration_llama.LlamaConfig"}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}},
        {"auto_map": "modeling_llama.LlamaForCausalLM"},
        {"vocab_size": 128_256},
    ],
)
def test_other_llamas_have_all_their_heads(changes):
    assert "heads" not in recipe_section(config(**changes))["attention"]


def test_ratios_are_rounded_down_as_published():
    assert published_heads(6) == {"router": "query_norm", "shared": 3, "active": 4, "router_dtype": "model"}
    for n in (2, 7):
        with pytest.raises(ConfigError, match=f"moh-llama3: {n} heads; the published code needs an even number"):
            published_heads(n)
