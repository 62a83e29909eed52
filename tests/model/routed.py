"""Layers with routed heads for these tests, and what their gates should be, one token at a time from the equations."""

import math
from typing import Any

import torch
from torch import Tensor

from hybridlm.kernels.shared.sequences import HOST
from hybridlm.lm.mixers.attention.attention import Attention
from hybridlm.lm.mixers.attention.heads import Routed
from hybridlm.lm.parts.context import Context
from hybridlm.tests.model.helpers import small

D_MODEL, N_HEADS, HEAD_DIM = 32, 8, 4


def layer(heads: dict[str, Any] | None, dtype: torch.dtype = torch.float64, **attention: Any) -> Attention:
    """Attention of 8 heads in a model of one layer, its router away from zero."""
    own = {"n_heads": N_HEADS, "head_dim": HEAD_DIM, **attention, "heads": heads}
    config = small(d_model=D_MODEL, n_layers=1, pattern=["attention"], attention=own)
    torch.manual_seed(0)
    mixer = Attention(config.layer_specs()[0].options, config.shape, 0).to(dtype)
    if hasattr(mixer, "router"):
        with torch.no_grad():
            mixer.router.normal_(std=0.3)
    return mixer


def inputs(B: int = 2, T: int = 13, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(B, T, D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rows(x: Tensor) -> Context:
    return Context.dense(x.shape[0], x.shape[1], None, HOST)


def documents(lengths: list[int]) -> Context:
    return Context.documents_after(lengths, None, HOST)


def route(mixer: Attention, x: Tensor, sequences: Context | None = None) -> Routed:
    """What the heads of a layer make of its input x [B, T, d_model]."""
    return mixer.heads(mixer, x, mixer.projection(mixer, x).q, sequences or rows(x))


def gates(mixer: Attention, x: Tensor, sequences: Context | None = None) -> Tensor:
    """[B, T, H]"""
    gate = route(mixer, x, sequences).gate
    assert gate is not None
    return gate.weight


def softmax(values: list[float]) -> list[float]:
    e = [math.exp(value - max(values)) for value in values]
    return [value / sum(e) for value in e]


def largest(values: list[float], n: int) -> list[int]:
    """The places of the n largest, the first of equal ones."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]


def learned_gates(x: Tensor, W_h: Tensor, W_s: Tensor, W_r: Tensor, K: int) -> Tensor:
    """The published code's gates of each token of x [T, D]: shared heads, then routed ones."""
    found = []
    for token in x:
        a = [2 * p for p in softmax((W_h @ token).tolist())]
        s = [len(W_s) * p for p in softmax((W_s @ token).tolist())]
        p = softmax((W_r @ token).tolist())
        chosen = largest(p, K)
        mass = sum(p[i] for i in chosen)
        q = [K * p[i] / mass if i in chosen else 0.0 for i in range(len(p))]
        found.append([a[0] * value for value in s] + [a[1] * value for value in q])
    return torch.tensor(found, dtype=torch.float64)


def query_norm_probabilities(q: Tensor, routed: list[int], normalise: bool = True) -> Tensor:
    """Softmax over the routed heads of the queries q [T, H, D], as the published code has it."""
    found = []
    for token in q:
        n = [math.sqrt(sum(value**2 for value in token[i].tolist())) for i in routed]
        mean = sum(n) / len(n)
        std = math.sqrt(sum((value - mean) ** 2 for value in n) / (len(n) - 1)) if normalise else 1.0
        found.append(softmax([value / std for value in n]))
    return torch.tensor(found, dtype=torch.float64)
