"""Exported folders in vLLM on a CPU: log-probabilities of prompts and of what it writes, greedily, beside our own.

Only where vLLM is installed, which docs/evaluation.md shows how to do; `-s` prints the measured differences.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.hf import save_pretrained

pytest.importorskip("vllm", reason="vLLM is not installed: docs/evaluation.md has an environment for it")
pytestmark = pytest.mark.slow

VOCAB, NEW, LENGTHS = 500, 16, (90, 37, 5)
SIZES = ["d_model=128", "context=256", f"vocab_size={VOCAB}", "init_std=0.05", "tie_embeddings=false"]
# by model_type: a recipe and what makes it small. vLLM's attention on a CPU takes heads of 32 channels and more
RECIPES = {
    "qwen3_5_text": ["qwen3-5", "attention.n_heads=2", "attention.rope.theta=1000", "gated_deltanet.n_heads=2"],
    "qwen3": ["demo", "ratio=null", "pattern=[attention]", "attention={n_heads: 4, n_kv_heads: 2, qk_norm: head}"],
}
# vLLM's gated delta rule on a CPU wants bf16
FOLDERS = [("qwen3_5_text", "bfloat16"), ("qwen3", "bfloat16"), ("qwen3", "float32")]
# in a process of its own: vLLM binds threads to cores
SERVE = """
import json, sys
from vllm import LLM, SamplingParams

folder, dtype, new = sys.argv[1:]
prompts = json.load(sys.stdin)
engine = LLM(folder, dtype=dtype, skip_tokenizer_init=True, enforce_eager=True, max_model_len=256, max_num_seqs=4)
greedy = SamplingParams(
    temperature=0, max_tokens=int(new), prompt_logprobs=0, logprobs=0, ignore_eos=True, detokenize=False
)
rows = []
for ids, row in zip(prompts, engine.generate([{"prompt_token_ids": ids} for ids in prompts], greedy)):
    whole = ids + list(row.outputs[0].token_ids)
    scores = [*row.prompt_logprobs[1:], *row.outputs[0].logprobs]
    rows.append((whole, [found[token].logprob for token, found in zip(whole[1:], scores)]))
print("RESULT" + json.dumps(rows))
"""
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def served(folder: Path, dtype: str, prompts: list[list[int]]) -> list[tuple[list[int], Tensor]]:
    """Each prompt with its greedy continuation, and vLLM's log-probabilities of all its tokens but the first."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(folder), dtype, str(NEW)],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | SETTINGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.rpartition("RESULT")[2])
    return [(ids, torch.tensor(scores)) for ids, scores in rows]


@torch.no_grad()
def log_probabilities(model: HybridLM, ids: list[int]) -> Tensor:
    """Of every token at every position but the first: [T - 1, V]."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].float(), -1)


def trained(recipe: str, *overrides: str) -> HybridLM:
    """A random model which says something else at each step and is sure of it, its norms away from 0 and 1, its
    attention sharp: with half of a head's channels turning instead of a quarter, logits are ten times bf16's error off.
    """
    torch.manual_seed(0)
    model = HybridLM(Recipe.load(recipe, [f"model.{override}" for override in (*SIZES, *overrides)]).model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter) + 3 * name.endswith("mixer.q_norm.weight"))
        model.lm_head.weight.mul_(2)
    return model.eval()


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize(("kind", "dtype"), FOLDERS)
def test_vllm_serves_what_was_exported(tmp_path, kind, dtype):
    """In float32 the same to rounding, token for token. In bf16 as near to our float32 as our own bf16 is, and what it
    writes is what our float32 would, but where two tokens are as likely as rounding can tell.
    """
    model = trained(*RECIPES[kind]).to(getattr(torch, dtype))
    save_pretrained(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kind
    exact = copy.deepcopy(model).float()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCAB, (T,), generator=generator).tolist() for T in LENGTHS]
    theirs, ours, behind = [], [], []
    for prompt, (ids, scores) in zip(prompts, served(tmp_path / "out", dtype, prompts), strict=True):
        assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + NEW
        assert len(set(ids[len(prompt) :])) > NEW / 2, "the same token again and again says little about the state"
        likely, tokens = log_probabilities(exact, ids), torch.tensor(ids[1:])[:, None]
        expected = likely.gather(1, tokens)[:, 0]
        theirs.append(scores - expected)
        ours.append(log_probabilities(model, ids).gather(1, tokens)[:, 0] - expected)
        behind.append((likely.amax(-1) - expected)[-NEW:])  # what it wrote, behind our first choice, in nats
    error, own, lost = rms(torch.cat(theirs)), rms(torch.cat(ours)), torch.cat(behind)
    print(f"\n{kind}, {dtype}: RMS {error:.6f}, our own {own:.6f}, nats; ", end="")
    print(f"{int((lost == 0).sum())} of {len(lost)} tokens our first choice, {float(lost.max()):.3f} behind it at most")
    limit, lost_limit = (1.5 * own, 4 * own) if dtype == "bfloat16" else (1e-4, 0.0)
    assert error <= limit and lost.max() <= lost_limit
