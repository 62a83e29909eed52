"""What `hybridlm bench ops` compares: each operator's inputs, its backends and a peer in plain PyTorch.

The peers are what one would run on a CPU otherwise: the fallback that transformers ships for Qwen3-Next, and
flash-linear-attention's naive functions (a chunked one where its decay is per head, else token by token).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import Recurrence, available_backends, gated_delta_rule, gated_linear_attention, gated_scan

Op = Callable[..., tuple[Tensor, Tensor | None]]
Inputs = list[Tensor]


@dataclass(frozen=True)
class BenchCase:
    """One operator. `shapes`: B, T, H, K, V by name. `products`: matmuls of 2 K V per token and head, forward."""

    name: str
    op: Recurrence
    make: Callable[[tuple[int, ...], torch.dtype], Inputs]
    peer_name: str
    peer: Callable[[], Op]
    shapes: dict[str, tuple[int, ...]]
    products: int
    takes_chunk_size: bool = True

    def backends(self) -> list[str]:
        """Those that run on this CPU, slower ones first, without the definition."""
        reasons = available_backends(self.op.name, torch.device("cpu"))
        return [name for name, reason in reasons.items() if reason is None and name not in ("reference", "triton")]

    def call(self, inputs: Inputs, backend: str, chunk_size: int) -> Callable[[], Tensor]:
        op = partial(self.op, chunk_size=chunk_size) if self.takes_chunk_size else self.op
        return lambda: op(*inputs, output_final_state=True, backend=backend)[0]

    def call_peer(self, inputs: Inputs) -> Callable[[], Tensor]:
        peer = self.peer()
        return lambda: peer(*inputs, output_final_state=True)[0]

    def flops(self, shape: tuple[int, ...], backward: bool) -> int:
        """Of the recurrence's own products, whatever a backend adds to them; a backward pass counts twice."""
        B, T, H, K, V = shape
        return (3 if backward else 1) * self.products * 2 * B * T * H * K * V


def transformers_fallback() -> Op:
    """torch_chunk_gated_delta_rule of transformers; with fla installed the public name is a Triton op instead."""
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    return getattr(module.torch_chunk_gated_delta_rule, "__wrapped__", module.torch_chunk_gated_delta_rule)


def _naive_simple_gla() -> Op:
    from fla.ops.simple_gla.naive import naive_chunk_simple_gla

    return naive_chunk_simple_gla


def _naive_gla() -> Op:
    from fla.ops.gla.naive import naive_recurrent_gla

    return naive_recurrent_gla


def _naive_hgrn() -> Op:
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    op: Any = naive_recurrent_hgrn  # its annotation leaves out the state
    return op


def _draw(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, K, V = shape
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(B, T, H, K), dim=-1).to(dtype) for _ in range(2))
    return q, k, torch.randn(B, T, H, V).to(dtype)


def _log_decay(*shape: int) -> Tensor:
    return F.logsigmoid(torch.randn(*shape) + 3)


def _leaves(*inputs: Tensor) -> Inputs:
    return [x.requires_grad_() for x in inputs]


def delta_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Inputs:
    return _leaves(*_draw(shape, dtype), _log_decay(*shape[:3]), torch.rand(*shape[:3]))


def _head_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Inputs:
    return _leaves(*_draw(shape, dtype), _log_decay(*shape[:3]))


def _channel_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Inputs:
    return _leaves(*_draw(shape, dtype), _log_decay(*shape[:4]))


def _scan_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Inputs:
    B, T, H, K, _ = shape
    torch.manual_seed(0)
    return _leaves(torch.randn(B, T, H * K).to(dtype), _log_decay(B, T, H * K))


ONE = {"T=1024, H=4, K=V=64": (1, 1024, 4, 64, 64)}
TWO = ONE | {"8 x 512, H=4, K=48, V=96": (8, 512, 4, 48, 96)}
WIDE = {"T=1024, 256 channels": (1, 1024, 4, 64, 1)}

CASES = (
    BenchCase("gated_delta_rule", gated_delta_rule, delta_inputs, "transformers", transformers_fallback, TWO, 3),
    BenchCase(
        "gated_linear_attention, decay per head",
        gated_linear_attention,
        _head_inputs,
        "fla naive",
        _naive_simple_gla,
        ONE,
        2,
    ),
    BenchCase(
        "gated_linear_attention, per channel", gated_linear_attention, _channel_inputs, "fla naive", _naive_gla, ONE, 2
    ),
    BenchCase("gated_scan", gated_scan, _scan_inputs, "fla naive", _naive_hgrn, WIDE, 0, takes_chunk_size=False),
)
