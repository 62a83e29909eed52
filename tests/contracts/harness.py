"""What every contract needs: small models built by name, tokens, and comparisons.

A contract is a plain function `check_...(build)` that raises AssertionError when the model that `build` makes breaks
it, so that the same function runs on every registered mixer and on the deliberately broken ones of `broken.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from hybridlm.kernels.operator import OPERATORS
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.model.cache import Cache
from hybridlm.lm.recipe.model import BaseModelConfig, ModelConfig
from hybridlm.tests.oracles import assert_close

VOCAB = 97
NORM_EPS = 1e-3  # beside 1e-6, a head's norm would enlarge the rounding of a first q k that nearly cancels
FORWARD, GRADIENT = 1e-5, 1e-4  # relative RMS in float32, DESIGN.md "Contracts"

Build = Callable[..., HybridLM]
"""build(d_model=64, n_layers=None) -> the same model at every call with the same sizes."""


@dataclass(frozen=True)
class Builder:
    """Models that repeat `layers`, names or YAML `{name: {option: value}}`; `kind` is HybridLM or a broken one."""

    layers: tuple[str, ...]
    kind: type[HybridLM] = HybridLM

    def __call__(self, d_model: int = 64, n_layers: int | None = None) -> HybridLM:
        depth = n_layers or max(2, len(self.layers))
        torch.manual_seed(0)
        model = self.kind(self._config(d_model, depth)).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # away from the zeros and ones of initialisation, which hide mistakes
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    def _config(self, d_model: int, n_layers: int) -> BaseModelConfig:
        pattern = self.layers[:n_layers]
        late = [name for name in pattern if name in MIXERS and name not in ModelConfig.model_fields]
        if late:
            config = stand_in_config(*late)
            return config(
                n_layers=n_layers, d_model=d_model, vocab_size=VOCAB, norm_eps=NORM_EPS, pattern=list(pattern)
            )
        sizes = [f"model.n_layers={n_layers}", f"model.d_model={d_model}", f"model.vocab_size={VOCAB}"]
        layers = [f"model.norm_eps={NORM_EPS}", f"model.pattern=[{', '.join(pattern)}]"]
        return Recipe.load("demo", overrides=[*sizes, *layers]).model


def stand_in_config(*names: str) -> type[BaseModelConfig]:
    """ModelConfig with a section for mixers that were registered after `hybridlm.lm.recipe` was imported."""
    sections = {name: (MIXERS[name].Config, Field(default_factory=MIXERS[name].Config)) for name in names}
    return create_model("StandInConfig", __base__=ModelConfig, **sections)  # type: ignore[call-overload]


@contextmanager
def matmul_backends() -> Iterator[None]:
    """Within, "auto" is the fastest backend whose products torch can see and count."""
    before = {op: op.backends for op in OPERATORS.values()}
    for op in before:
        op.backends = {name: b for name, b in op.backends.items() if name in ("reference", "chunked")}
    try:
        yield
    finally:
        for op, backends in before.items():
            op.backends = backends


def tokens(B: int, T: int, seed: int = 0) -> Tensor:
    """Random token ids [B, T]."""
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def scores(model: HybridLM, ids: Tensor, **how) -> Tensor:
    """Logits [B, T, V] without a graph."""
    logits = model(ids, **how).logits
    assert logits is not None
    return logits


def bounds(lengths: Sequence[int]) -> Tensor:
    """cu_seqlens of documents of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def weights_like(logits: Tensor, seed: int = 7) -> Tensor:
    """Fixed random cotangents, so that a gradient test weighs every logit differently."""
    return torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=logits.dtype)


def gradients(model: HybridLM) -> dict[str, Tensor]:
    """Gradients by parameter name, cloned, and the model's cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = GRADIENT) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, bound, f"gradient of {name}")


def assert_same_state(found: Cache, expected: Cache, bound: float = FORWARD) -> None:
    """Same lengths and, layer by layer, the same tensors."""
    assert found.lengths == expected.lengths, (found.lengths, expected.lengths)
    for i, (mine, other) in enumerate(zip(found.layers, expected.layers, strict=True)):
        assert mine.tensors().keys() == other.tensors().keys()
        for name, tensor in other.tensors().items():
            assert_close(mine.tensors()[name], tensor, bound, f"state {name} of layer {i}")


class Logits(nn.Module):
    """A model that gives a tensor, as torch.export wants it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits
