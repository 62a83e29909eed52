"""The numerical goal of every backend: on gates and keys chosen to hurt, hardly worse than the recurrence in float32.

`inputs` draws them, `assert_exact` compares with the float64 recurrence: the relative RMS error of every output and
every gradient is at most FACTOR times that of the float32 recurrence.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.kernels import gated_delta_rule, gated_linear_attention, gated_scan
from hybridlm.tests.oracles import relative_rms

FACTOR = 2.0
ROUNDING = 2.0**-24  # the least error a float32 result is expected to have
SMALLEST = 1e-6  # distance of the decays from 0 and from 1
GATES = ("mixed", "runs", "weak", "strong", "resets")
RESETS = (-100.0, -1e4, -1e30, -torch.inf)  # exp of all but the first is 0 in float64 too
OPS = {
    "gated_delta_rule": gated_delta_rule,
    "gated_linear_attention": gated_linear_attention,
    "gated_scan": gated_scan,
}


def inputs(
    op: str,
    gates: str = "mixed",
    *,
    B: int = 1,
    T: int = 160,
    H: int = 16,
    HV: int | None = None,
    K: int = 32,
    V: int = 32,
    n: int | None = None,
    gate: str | None = "channel",
    seed: int = 0,
) -> dict[str, Tensor | None]:
    """float32 arguments of `op` by name, initial state of n (default B) sequences included.

    Many heads rather than few: an error is an average, and few strong decays weigh much. gates: how the decays of
    `log_decays` are spread over tokens. gate: of gated_linear_attention, "channel", "head" or
    None; gated_scan has B, T, K only.
    """
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    if op == "gated_scan":
        return {"x": randn(B, T, K), "g": log_decays(gates, (B, T, K), rng), "initial_state": randn(n or B, K)}
    q, k = F.normalize(randn(B, T, H, K), dim=-1), F.normalize(randn(B, T, H, K), dim=-1)
    k = k[:, torch.arange(T) - torch.arange(T) % 50 % 7]  # runs of one to seven equal keys
    if op == "gated_linear_attention":
        per = {"channel": (B, T, H, K), "head": (B, T, H), None: None}[gate]
        g = None if per is None else log_decays(gates, per, rng)
        return {"q": q, "k": k, "v": randn(B, T, H, V), "g": g, "initial_state": randn(n or B, H, K, V)}
    HV = HV or H
    beta = torch.rand(B, T, HV, generator=rng)
    beta[:, torch.arange(T) % 100 < 60] = 1
    g, state = log_decays(gates, (B, T, HV), rng), randn(n or B, HV, K, V)
    return {"q": q, "k": k, "v": randn(B, T, HV, V), "g": g, "beta": beta, "initial_state": state}


def log_decays(gates: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """ln of decays that lie between 1e-6 and 1 - 1e-6: log-uniform in their distance from 0, or from 1.

    "strong": the former, "weak": the latter, "mixed": either at every token, "runs": weak ones broken by a strong one,
    "resets": weak ones broken by decays of 0.
    """
    distance = SMALLEST ** torch.rand(shape, generator=rng, dtype=torch.float64).clamp(min=1e-6)
    strong, weak = distance.log(), (-distance).log1p()
    if gates == "mixed":
        use_strong = torch.rand(shape, generator=rng) < 0.5
    elif gates == "runs":
        use_strong = torch.rand(shape, generator=rng) < 0.03
    else:
        use_strong = torch.tensor({"strong": True, "weak": False, "resets": False}[gates])
    g = strong.where(use_strong, weak).float()
    if gates == "resets":
        which = torch.randint(len(RESETS), shape, generator=rng)
        g = torch.where(torch.rand(shape, generator=rng) < 0.1, torch.tensor(RESETS)[which], g)
    return g


def results(
    op: str, arguments: dict[str, Tensor | None], backend: str, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, Tensor]:
    """o, the final state and the gradient d* of every argument, for fixed random cotangents of both outputs.

    The state's weighs K^-0.5, as `scale` does in o, so that neither hides the other.
    """
    leaves = {name: None if x is None else x.to(dtype).requires_grad_() for name, x in arguments.items()}
    positional = [x for name, x in leaves.items() if name != "initial_state"]
    state = leaves["initial_state"]
    o, final = OPS[op](*positional, initial_state=state, output_final_state=True, backend=backend, **options)
    rng = torch.Generator().manual_seed(1)
    do, dstate = (torch.randn(x.shape, generator=rng).to(x) for x in (o, final))
    weight = 1.0 if final.ndim == 2 else final.shape[-2] ** -0.5
    loss = (o * do).sum() + weight * (final * dstate).sum()
    given = {name: x for name, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad(loss, list(given.values()))
    return {"o": o, "state": final} | {f"d{name}": x for name, x in zip(given, gradients, strict=True)}


def errors(
    op: str, arguments: dict[str, Tensor | None], backend: str, expected: dict[str, Tensor], **options: Any
) -> dict[str, float]:
    found = results(op, arguments, backend, **options)
    return {name: relative_rms(found[name], x) for name, x in expected.items()}


def assert_exact(
    op: str, backend: str, arguments: dict[str, Tensor | None], factor: float = FACTOR, **options: Any
) -> None:
    """Raises AssertionError naming every output and gradient of `backend` that misses the goal."""
    chunking = {name: options[name] for name in ("chunk_size", "recompute") if name in options}
    plain = {name: x for name, x in options.items() if name not in chunking}
    expected = results(op, arguments, "reference", torch.float64, **plain)
    allowed = errors(op, arguments, "reference", expected, **plain)
    found = errors(op, arguments, backend, expected, **options)
    missed = [
        f"{name}: {found[name]:.1e}, the float32 recurrence {allowed[name]:.1e}"
        for name in expected
        if found[name] > factor * max(allowed[name], ROUNDING)
    ]
    assert not missed, f"{op} by {backend}, relative RMS errors above {factor} x the recurrence's: {'; '.join(missed)}"
