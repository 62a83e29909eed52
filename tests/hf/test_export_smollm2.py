"""SmolLM2-135M, imported and exported again, in transformers. Skipped where it was not imported to runs/smollm2."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.tests.hf.helpers import assert_same_bits
from hybridlm.tests.oracles import assert_close

RUN = Path(__file__).parents[2] / "runs" / "smollm2"
TEXT = "Fellow citizens,  we gather here\n\n to speak of 1234 naïve plans — and of the state of the union."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (RUN / "recipe.yaml").is_file(), reason="no runs/smollm2; see docs for the import"),
]


@torch.no_grad()
def test_smollm2(tmp_path):
    model = load_pretrained(RUN)
    save_pretrained(model, tmp_path / "out", tokenizer=RUN / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    exact = model(ids).logits
    assert_close(theirs(ids).logits, exact, 1e-5, "logits")
    found = theirs.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(found, model.generate(ids, 8, temperature=0))
    assert_same_bits(load_pretrained(tmp_path / "out"), model)
    # bfloat16: a few tokens are so ill-conditioned that one rounding elsewhere moves their logits by half their size;
    # loaded in that dtype, for a cast of transformers' model rounds its RoPE frequencies too
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert_close(model.to(torch.bfloat16)(ids).logits, theirs(ids).logits, 1e-2, "bfloat16 logits")
