"""SmolLM2-135M-Instruct end to end: `hybridlm fetch smollm2` makes these tests run."""

import math
import os
from pathlib import Path

import pytest
import torch

from hybridlm.lm.data.registered.sources import SOURCES, read
from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.lm.mixers.attention.head_options import HeadsConfig
from hybridlm.lm.model.loading import load_run
from hybridlm.tests.oracles import assert_close, relative_rms

CACHE = Path(os.environ.get("HYBRIDLM_CACHE", "~/.cache/hybridlm")).expanduser()
BOOK = CACHE / "downloads" / SOURCES["mobydick"].pin.file

pytestmark = pytest.mark.slow
PROMPT = "The capital of France is"
TEXTS = {
    "prompt": PROMPT * 9,
    "speech": "Fellow citizens,  we gather here\n\n to speak of 1234 naïve plans — and of the state of the union.",
    "code": "def power(x, n):\n    y = 1\n    for _ in range(n):\n        y *= x\n    return y\n\n\nprint(power(2, 9))",
    "chat": "<|im_start|>user\nHow many moons has Jupiter?<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.fixture(scope="module")
def model(smollm2):
    return load_run(smollm2)


@torch.no_grad()
def test_it_knows_paris(smollm2, model):
    tokenizer = smollm2.tokenizer()
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    assert tokenizer.decode(model.generate(ids, 2, temperature=0)[0].tolist()) == PROMPT + " Paris."


@pytest.mark.skipif(not BOOK.is_file(), reason="hybridlm fetch mobydick gets the text")
@torch.no_grad()
def test_bits_per_byte_of_moby_dick(smollm2, model):
    tokenizer = smollm2.tokenizer()
    text = next(iter(read("mobydick", CACHE))).text
    ids = tokenizer.encode(text[200_000:212_000])[:2048]
    loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids]), logits=False).loss)
    bits = loss * (len(ids) - 1) / math.log(2) / len(tokenizer.decode(ids).encode())
    assert 1.25 < bits < 1.40  # 1.34 is what transformers measures on such windows with the same weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_with_all_nine_heads_active_every_bit_is_that_of_the_source(smollm2, tmp_path, dtype):
    heads = HeadsConfig(router="query_norm", shared=3, active=9, shared_heads=[0, 4, 8])
    run = import_checkpoint(smollm2.folder, tmp_path / "run", heads=heads)
    dense, moh = load_pretrained(smollm2.folder, dtype=dtype), load_pretrained(run.folder, dtype=dtype)
    ids = torch.tensor([smollm2.tokenizer().encode(TEXTS["code"])])
    assert torch.equal(moh(ids).logits, dense(ids).logits)
    caches = moh.new_cache(1), dense.new_cache(1)
    for piece in ids.split([20, *[1] * (ids.shape[1] - 20)], 1):
        found, expected = (model(piece, cache=cache).logits for model, cache in zip((moh, dense), caches, strict=True))
        assert torch.equal(found, expected)


@torch.no_grad()
def test_logits_are_those_of_transformers(smollm2, model, tmp_path):
    """The same run as a folder for transformers: the way out is as exact as the way in."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_pretrained(model, tmp_path / "out", tokenizer=smollm2.tokenizer(), format="llama")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.tensor([smollm2.tokenizer().encode(PROMPT * 9)])
    assert_close(model(ids).logits, theirs(ids).logits, 1e-5, "logits")
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder / "tokenizer")
    for text in (PROMPT, "naïve 北京 🙂 12345", "x  =\t1;\r\n<|im_end|> I'll"):
        assert tokenizer(text, add_special_tokens=False).input_ids == smollm2.tokenizer().encode(text)


@pytest.fixture(scope="module")
def bfloat16(smollm2, model, tmp_path_factory):
    """Ours, read from the run, and transformers', read from the exported folder."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("exported") / "out"
    save_pretrained(model, folder, tokenizer=smollm2.tokenizer(), format="llama")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return load_pretrained(smollm2.folder, dtype=torch.bfloat16), theirs


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_bfloat16_logits_are_those_of_transformers(smollm2, bfloat16, text):
    """30 layers amplify roundings: elsewhere, they move logits by 2e-2, and those of the speech by 0.7."""
    mine, theirs = bfloat16
    ids = torch.tensor([smollm2.tokenizer().encode(TEXTS[text])])
    assert_close(mine(ids).logits, theirs(ids).logits, 1e-2, "logits")


@pytest.mark.skipif(not BOOK.is_file(), reason="hybridlm fetch mobydick gets the text")
@torch.no_grad()
def test_bfloat16_logits_of_moby_dick(smollm2, model, bfloat16):
    """Two rows of 400 tokens, where a matrix product may round by the number of threads: ours strays no further."""
    text = next(iter(read("mobydick", CACHE))).text
    ids = torch.tensor([smollm2.tokenizer().encode(text[start : start + 2_000])[:400] for start in (200_000, 700_000)])
    exact = model(ids).logits
    ours, theirs = (relative_rms(one(ids).logits.float(), exact) for one in bfloat16)
    assert ours <= 1.1 * theirs
