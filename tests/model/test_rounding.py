"""Where a model in bfloat16 rounds: as late as it can, and a Llama where transformers' Llama does."""

import pytest
import torch
from torch import Tensor

from hybridlm.lm import HybridLM
from hybridlm.lm.mixers.attention.attention import Attention
from hybridlm.lm.parts.norm import RMSNorm
from hybridlm.lm.recipe.model import ModelConfig

SIZES = {"vocab_size": 31, "d_model": 32, "n_layers": 2}


def build(pattern: list, **options) -> HybridLM:
    torch.manual_seed(0)
    return HybridLM(ModelConfig(**SIZES, pattern=pattern, init_std=0.15, **options)).eval()


def norm_and_input(dtype: torch.dtype = torch.bfloat16) -> tuple[RMSNorm, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(75, 1e-5)
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn(75, generator=generator))
    return norm.to(dtype), torch.randn(4, 50, 75, generator=generator).bfloat16()


def once(norm: RMSNorm, x: Tensor) -> Tensor:
    exact = x.double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return (exact * norm.weight.double()).bfloat16()


@torch.no_grad()
def test_llama_norms_are_those_of_transformers():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm, x = norm_and_input()
    norm.llama_rounding = True
    theirs = LlamaRMSNorm(75, norm.eps).to(torch.bfloat16)
    theirs.weight.copy_(norm.weight)
    assert torch.equal(norm(x), theirs(x))
    assert (norm(x) != once(norm, x)).float().mean() > 0.1


@torch.no_grad()
def test_other_norms_round_once():
    norm, x = norm_and_input()
    assert (norm(x) != once(norm, x)).float().mean() < 1e-3  # float32 is not float64


@torch.no_grad()
def test_a_norm_with_a_float32_weight_rounds_once():
    """As under autocast, where activations inside a mixer are bfloat16 and parameters float32."""
    norm, x = norm_and_input(torch.float32)
    norm.llama_rounding = True
    assert (norm(x) != once(norm, x)).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("pattern", "options", "llama"),
    [
        (["attention"], {}, True),
        ([{"attention": {"window": 5}}, "attention"], {"attention": {"qk_norm": "head"}}, True),
        (["attention"], {"attention": {"norm": "post", "qk_norm": "full"}}, False),
        (["gated_deltanet", "attention"], {}, False),
        (["gla"], {}, False),
    ],
)
def test_which_models_are_llamas(pattern, options, llama):
    modules = [m for m in build(pattern, **options).modules() if isinstance(m, RMSNorm | Attention)]
    assert modules and {module.llama_rounding for module in modules} == {llama}


@torch.no_grad()
def test_training_rounds_as_before():
    """Under autocast and in float32 Llama's rounding changes no bit."""
    ids = torch.randint(0, 31, (2, 40), generator=torch.Generator().manual_seed(1))
    for autocast in (True, False):
        logits = []
        for llama in (True, False):
            model = build(["attention"], attention={"qk_norm": "head"})
            for module in model.modules():
                if isinstance(module, RMSNorm | Attention):
                    module.llama_rounding = llama
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits.append(model(ids).logits)
        assert torch.equal(*logits)
