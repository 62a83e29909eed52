"""The same weights in a transformers Llama under lm-eval's own adapter give the same results."""

import pytest
import torch
from lm_eval.api.instance import Instance

from hybridlm.eval.harness import HybridHarness
from hybridlm.lm import HybridLM

from .conftest import PROSE, build

pytestmark = pytest.mark.slow


def copy_weights(source: HybridLM, target: torch.nn.Module) -> None:
    """Fused projections of `source` into the separate ones of a LlamaForCausalLM; every parameter must be given."""
    given = {
        "model.embed_tokens.weight": source.embed.weight,
        "model.norm.weight": source.norm.weight,
        "lm_head.weight": source.lm_head.weight,
    }
    for i, block in enumerate(source.layers()):
        mixer, layer = block.mixer, f"model.layers.{i}."
        widths = [n * mixer.head_dim for n in (mixer.n_heads, mixer.n_kv_heads, mixer.n_kv_heads)]
        for name, weight in zip("qkv", mixer.qkv_proj.weight.split(widths), strict=True):
            given[f"{layer}self_attn.{name}_proj.weight"] = weight
        given[f"{layer}self_attn.o_proj.weight"] = mixer.o_proj.weight
        for name, weight in zip(("gate", "up"), block.ffn.gate_up_proj.weight.chunk(2), strict=True):
            given[f"{layer}mlp.{name}_proj.weight"] = weight
        given[f"{layer}mlp.down_proj.weight"] = block.ffn.down_proj.weight
        given[f"{layer}input_layernorm.weight"] = block.mixer_norm.weight
        given[f"{layer}post_attention_layernorm.weight"] = block.ffn_norm.weight
    target.load_state_dict(given, strict=True)


def requests(kind, arguments):
    return [Instance(kind, {}, args, i, metadata=("t", i, 1)) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our harness and lm-eval's, on equal weights and one byte-level BPE tokenizer that puts BOS in front."""
    pytest.importorskip("accelerate", reason="lm-eval's hf adapter imports accelerate: pip install accelerate")
    from lm_eval.models.huggingface import HFLM
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from hybridlm.lm.data.tokenizer import Tokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(PROSE, vocab_size=340, special_tokens=["<s>", "</s>"], show_progress=False)
    bpe.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))])
    folder = tmp_path_factory.mktemp("bpe")
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    model = build("[attention]")
    mixer, ffn = next(iter(model.layers())).mixer, next(iter(model.layers())).ffn
    config = LlamaConfig(
        vocab_size=340,
        hidden_size=model.config.d_model,
        intermediate_size=ffn.down_proj.in_features,
        num_hidden_layers=model.config.n_layers,
        num_attention_heads=mixer.n_heads,
        num_key_value_heads=mixer.n_kv_heads,
        head_dim=mixer.head_dim,
        rms_norm_eps=model.config.norm_eps,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    llama = LlamaForCausalLM(config).eval()
    copy_weights(model, llama)
    theirs = HFLM(
        pretrained=llama, tokenizer=tokenizer, batch_size=4, max_length=256, add_bos_token=True, prefix_token_id=0
    )
    return HybridHarness(model, Tokenizer.load(folder), max_length=256), theirs


def test_loglikelihood(pair):
    ours, theirs = pair
    contexts = ["The value of the valley", "Question: which floats?\nAnswer:", "", "She said the violin"]
    answers = [" oak", " the door was closed", "\nand", " is 305"]
    arguments = [(context, answer) for context in contexts for answer in answers]
    found = ours.loglikelihood(requests("loglikelihood", arguments))
    expected = theirs.loglikelihood(requests("loglikelihood", arguments), disable_tqdm=True)
    for mine, other in zip(found, expected, strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4) and mine[1] == other[1]


def test_rolling(pair, monkeypatch):
    """Without its tokenizer's BOS: lm-eval puts its own in front of the text, and both would be one too many."""
    ours, theirs = pair
    monkeypatch.setattr(theirs, "add_bos_token", False)
    arguments = [(text,) for text in PROSE[:4]]
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", arguments))
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", arguments), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-3)


def test_generation(pair):
    ours, theirs = pair
    options = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    arguments = [(text[:n], dict(options)) for text in PROSE[:4] for n in (5, 20)]
    found = ours.generate_until(requests("generate_until", arguments))
    assert found == theirs.generate_until(requests("generate_until", arguments), disable_tqdm=True)
    assert len(set(found)) > 1
