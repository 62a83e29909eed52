"""The linear mixers written out token by token in float64, straight from the equations; and how tests build one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.lm.mixers import MIXERS, Mixer
from hybridlm.lm.parts.context import Context
from hybridlm.lm.parts.norm import RMSNorm
from hybridlm.lm.parts.rope import cos_sin, inverse_frequencies, rotate
from hybridlm.lm.parts.rope_config import RopeConfig
from hybridlm.tests.model.helpers import small

CPU = torch.device("cpu")
D = 32


def mixer(name: str, seed: int = 0, d_model: int = D, **options) -> Mixer:
    """One mixer in float64 with weights of trained size."""
    torch.manual_seed(seed)
    spec = small(d_model=d_model, pattern=[name], **{name: options}).layer_specs()[0]
    module = MIXERS[name](spec.options, small(d_model=d_model, pattern=[name]), 0).double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def inputs(B: int, T: int, seed: int = 1, d_model: int = D) -> Tensor:
    return torch.randn(B, T, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(x: Tensor) -> Context:
    return Context.dense(x.shape[0], x.shape[1], None, CPU)


def rms(o: Tensor, norm: RMSNorm) -> Tensor:
    return o / (o.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def parts(x: Tensor, weight: Tensor, *heads: tuple[int, int]) -> list[Tensor]:
    """x [T, D] times the rows of one joined projection, cut into [T, H, width] for each (H, width)."""
    cut = (x @ weight.T).split([h * width for h, width in heads], -1)
    return [y.view(len(x), *size) for y, size in zip(cut, heads, strict=True)]


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """silu of y_t = sum_j kernel[:, W - 1 - j] x_{t - j}."""
    W, rows = kernel.shape[1], []
    for t in range(len(x)):
        rows.append(torch.stack([kernel[:, W - 1 - j] * x[t - j] for j in range(min(W, t + 1))]).sum(0))
    return F.silu(torch.stack(rows))


def attended(q: Tensor, k: Tensor, v: Tensor, f: Tensor) -> Tensor:
    """S_t = diag(f_t) S_{t-1} + k_t v_t^T; o_t = S_t^T q_t / sqrt(K). f: [T, H, K] or [T, H, 1]. Returns [T, H, V]."""
    S, out = torch.zeros(*k.shape[1:], v.shape[2], dtype=k.dtype), []
    for t in range(len(q)):
        S = f[t, :, :, None] * S + k[t, :, :, None] * v[t, :, None]
        out.append((S * q[t, :, :, None]).sum(1) / q.shape[2] ** 0.5)
    return torch.stack(out)


def floored(logits: Tensor, lb: Tensor | None) -> Tensor:
    s = logits.sigmoid()
    return s if lb is None else lb + (1 - lb) * s


def hgrn(m, x: Tensor, lb: Tensor | None = None) -> Tensor:
    i, f, g = (x @ m.ifg_proj.weight.T).chunk(3, -1)
    f, h, out = floored(f, lb), torch.zeros(i.shape[1], dtype=x.dtype), []
    for t in range(len(x)):
        h = f[t] * h + (1 - f[t]) * F.silu(i[t])
        out.append(h)
    return rms(torch.stack(out), m.o_norm) * F.silu(g) @ m.o_proj.weight.T


def hgrn2(m, x: Tensor, lb: Tensor | None = None) -> Tensor:
    H, K, V = m.memory_shape
    q, f, v = parts(x, m.qfv_proj.weight, (H, K), (H, K), (H, V))
    f = floored(f, None if lb is None else lb.view(H, K))
    return rms(attended(F.silu(q), 1 - f, v, f).flatten(1), m.o_norm) @ m.o_proj.weight.T


def retnet(m, x: Tensor) -> Tensor:
    H, K, V = m.memory_shape
    q, k, v = parts(x, m.qkv_proj.weight, (H, K), (H, K), (H, V))
    cos, sin = cos_sin(inverse_frequencies(RopeConfig(), K), torch.arange(len(x))[None])
    q, k = (rotate(y[None], cos, sin)[0] for y in (q, k))
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(H)], dtype=x.dtype)
    o = attended(q, k, v, gamma.expand(len(x), H)[..., None])
    gate = F.silu(x @ m.g_proj.weight.T).view(len(x), H, V)
    return (rms(o, m.o_norm) * gate).flatten(1) @ m.o_proj.weight.T


def gla(m, x: Tensor) -> Tensor:
    H, K, V = m.memory_shape
    q, k, v = parts(x, m.qkv_proj.weight, (H, K), (H, K), (H, V))
    logits = x @ m.a1_proj.weight.T @ m.a2_proj.weight.T + m.a_bias
    alpha = logits.sigmoid() ** (1 / m.options.gate_normalizer)
    gate = F.silu(x @ m.g_proj.weight.T).view(len(x), H, V)
    return (rms(attended(q, k, v, alpha.view(-1, H, K)), m.o_norm) * gate).flatten(1) @ m.o_proj.weight.T


def deltanet(m, x: Tensor) -> Tensor:
    H, K, _ = m.memory_shape
    q, k, v = (y.view(len(x), H, K) for y in convolved(x @ m.qkv_proj.weight.T, m.conv).chunk(3, -1))
    q, k = unit(q), unit(k)
    beta = (x @ m.b_proj.weight.T).sigmoid() * (2 if m.options.allow_negative_eigenvalues else 1)  # [T, H]
    S, out = torch.zeros(H, K, K, dtype=x.dtype), []
    for t in range(len(x)):
        recalled = (S * k[t, :, :, None]).sum(1)
        S = S + k[t, :, :, None] * (beta[t, :, None] * (v[t] - recalled))[:, None]
        out.append((S * q[t, :, :, None]).sum(1) / K**0.5)
    o = rms(torch.stack(out), m.o_norm).flatten(1)
    return (o if m.g_proj is None else o * F.silu(x @ m.g_proj.weight.T)) @ m.o_proj.weight.T


ORACLES = {"hgrn": hgrn, "hgrn2": hgrn2, "retnet": retnet, "gla": gla, "deltanet": deltanet}
