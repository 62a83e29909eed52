"""Small models for these tests."""

import torch

from hybridlm.lm import HybridLM
from hybridlm.lm.recipe.model import ModelConfig


def small(**options) -> ModelConfig:
    """A two-layer model's configuration; `options` are sections and sizes of ModelConfig."""
    sizes = {"vocab_size": 61, "d_model": 32, "n_layers": 2}
    layers = {} if {"pattern", "ratio", "layers"} & options.keys() else {"pattern": ["gated_deltanet", "attention"]}
    return ModelConfig(**{**sizes, **layers, **options})


def build(seed: int = 0, **options) -> HybridLM:
    torch.manual_seed(seed)
    return HybridLM(small(**options)).eval()


def tokens(B: int, T: int, vocab: int = 61, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab, (B, T), generator=torch.Generator().manual_seed(seed))
