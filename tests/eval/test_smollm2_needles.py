"""A real model finds needles, and writes what transformers writes; `hybridlm fetch smollm2` makes these tests run."""

import os
from pathlib import Path

import pytest
import torch

from hybridlm.eval.forward.long_context import greedy, prefill
from hybridlm.eval.forward.scoring import inference
from hybridlm.eval.needles import Questions, measure_needles
from hybridlm.eval.needles.prompts import make_prompts
from hybridlm.lm.hf import save_pretrained
from hybridlm.lm.model.loading import load_run

from .needle_oracle import HAY

CACHE = Path(os.environ.get("HYBRIDLM_CACHE", "~/.cache/hybridlm")).expanduser()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(smollm2):
    return load_run(smollm2)


def test_needles_in_fillers_and_in_text_are_found_at_every_depth(smollm2, model):
    questions = Questions(["single_1", "single_2"], [512], HAY, depths=[0.0, 0.5, 1.0])
    found = measure_needles(model, smollm2.tokenizer(), questions)
    assert [cell.score for cell in found.cells] == [1.0] * 6
    assert all(total.answer_accuracy == total.answer_exact == 1 for total in found.summary)


@torch.no_grad()
def test_what_it_writes_chunk_by_chunk_is_what_transformers_generates(smollm2, model, tmp_path):
    from transformers import AutoModelForCausalLM

    save_pretrained(model, tmp_path / "out", tokenizer=smollm2.tokenizer(), format="llama")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    how = {"depths": [0.3], "samples": 1, "haystack": HAY, "seed": 0}
    for (prompt,) in make_prompts(smollm2.tokenizer(), ["single_3", "vt"], [800], **how):
        ids = torch.from_numpy(prompt.tokens).long()[None]
        with inference(model):
            written = greedy(model, *prefill(model, ids), 24, lambda tokens: False)
        exactly = {"min_new_tokens": 24, "max_new_tokens": 24, "do_sample": False}
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **exactly)  # type: ignore
        assert torch.equal(written, expected[:, ids.shape[1] :])
