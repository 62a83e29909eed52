"""Small random models for these tests."""

import torch

from hybridlm.lm import HybridLM
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.recipe.model import ModelConfig

VOCAB = 61


def section(**options) -> ModelConfig:
    """A small model's configuration; without layers, one of every registered mixer."""
    layers = {"pattern": list(MIXERS)}
    layers = {key: options.pop(key) for key in ("pattern", "ratio", "layers") if key in options} or layers
    sizes = {"vocab_size": VOCAB, "d_model": 32, "n_layers": len(next(iter(layers.values()))), "init_std": 0.15}
    return ModelConfig(**{**sizes, **layers, **options})


def build(seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> HybridLM:
    """A random model whose logits differ clearly from token to token, its biases and norms away from 0 and 1."""
    torch.manual_seed(seed)
    model = HybridLM(section(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith(".bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def assert_same_bits(found: HybridLM | dict, expected: HybridLM | dict) -> None:
    """Equal names, dtypes and bits."""
    found, expected = (dict(x) if isinstance(x, dict) else x.state_dict() for x in (found, expected))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
