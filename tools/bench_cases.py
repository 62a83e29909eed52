"""What `hybridlm bench ops` compares: each operator's inputs, its backends and a peer in plain PyTorch.

The peers are what one would run on a CPU otherwise: the fallback that transformers ships for Qwen3-Next,
flash-linear-attention's naive functions (a chunked one where its decay is per head, else token by token), and for
attention PyTorch's causal attention of all heads and tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import (
    Recurrence,
    available_backends,
    banded_attention,
    gated_delta_rule,
    gated_linear_attention,
    gated_scan,
    head_routed_attention,
)
from ..kernels.operator import Operator

Op = Callable[..., tuple[Tensor, Tensor | None]]
Inputs = list[Tensor]


@dataclass(frozen=True)
class BenchCase:
    """One operator. `shapes`: B, T, H, K, V by name."""

    name: str
    op: Operator[..., Any, ..., ...]
    make: Callable[[tuple[int, ...], torch.dtype], Inputs]
    peer_name: str
    shapes: dict[str, tuple[int, ...]]

    def backends(self) -> list[str]:
        """Those that run on this CPU, slower ones first, without the definition."""
        reasons = available_backends(self.op.name, torch.device("cpu"))
        return [name for name, reason in reasons.items() if reason is None and name not in ("reference", "triton")]

    def call(self, inputs: Inputs, backend: str, chunk_size: int) -> Callable[[], Tensor]:
        raise NotImplementedError

    def call_peer(self, inputs: Inputs) -> Callable[[], Tensor]:
        raise NotImplementedError

    def expected(self, inputs: Inputs) -> Tensor:
        """What a backend has to return: what the peer does, unless it solves another problem."""
        return self.call_peer(inputs)()

    def flops(self, shape: tuple[int, ...], backward: bool) -> float:
        """Of the operator's own products, whatever a backend adds to them."""
        raise NotImplementedError


@dataclass(frozen=True)
class RecurrenceCase(BenchCase):
    """`products`: matmuls of 2 K V per token and head, forward."""

    op: Recurrence
    peer: Callable[[], Op]
    products: int
    takes_chunk_size: bool = True

    def call(self, inputs: Inputs, backend: str, chunk_size: int) -> Callable[[], Tensor]:
        op = partial(self.op, chunk_size=chunk_size) if self.takes_chunk_size else self.op
        return lambda: op(*inputs, output_final_state=True, backend=backend)[0]

    def call_peer(self, inputs: Inputs) -> Callable[[], Tensor]:
        peer = self.peer()
        return lambda: peer(*inputs, output_final_state=True)[0]

    def flops(self, shape: tuple[int, ...], backward: bool) -> float:
        """A backward pass counts twice."""
        B, T, H, K, V = shape
        return (3 if backward else 1) * self.products * 2 * B * T * H * K * V


@dataclass(frozen=True)
class AttentionCase(BenchCase):
    """The peer computes every head of every token with all keys up to its own, q, k, v being the first inputs."""

    def call_peer(self, inputs: Inputs) -> Callable[[], Tensor]:
        q, k, v = (x.transpose(1, 2) for x in inputs[:3])
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@dataclass(frozen=True)
class BandedCase(AttentionCase):
    """Banded attention in which a query sees the share `span` of the tokens, a sixteenth of that as the sink."""

    span: float

    def seen(self, T: int) -> tuple[int, int]:
        """(sink, window)."""
        span = round(self.span * T)
        return span // 16, span - span // 16

    def call(self, inputs: Inputs, backend: str, chunk_size: int) -> Callable[[], Tensor]:
        sink, window = self.seen(inputs[0].shape[1])
        return lambda: self.op(*inputs, sink=sink, window=window, backend=backend)

    def expected(self, inputs: Inputs) -> Tensor:
        return self.call(inputs, "reference", 0)()

    def flops(self, shape: tuple[int, ...], backward: bool) -> float:
        """Of the pairs that are seen: two products forward, five backward."""
        B, T, H, K, _ = shape
        pairs = sum(min(t + 1, sum(self.seen(T))) for t in range(T))
        return (7 if backward else 2) * 2 * B * H * K * pairs


@dataclass(frozen=True)
class RoutedCase(AttentionCase):
    """Head-routed attention with an `active` share of the heads, drawn at random."""

    active: float

    def call(self, inputs: Inputs, backend: str, chunk_size: int) -> Callable[[], Tensor]:
        return lambda: self.op(*inputs, backend=backend)

    def expected(self, inputs: Inputs) -> Tensor:
        return self.call_peer(inputs)() * inputs[3][..., None]

    def flops(self, shape: tuple[int, ...], backward: bool) -> float:
        """Of the active pairs: two products forward, five backward."""
        B, T, H, K, _ = shape
        return (7 if backward else 2) * self.active * 2 * B * H * K * (T * (T + 1) // 2)


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


def _banded_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Inputs:
    return _leaves(*_draw(shape, dtype))


def _routed_inputs(active: float, shape: tuple[int, ...], dtype: torch.dtype) -> Inputs:
    """A gate of 1 for the same number of heads at every token."""
    B, T, H, _, _ = shape
    q, k, v = _draw(shape, dtype)
    chosen = torch.rand(B, T, H).topk(round(active * H), 2).indices
    return _leaves(q, k, v, torch.zeros(B, T, H).scatter(2, chosen, 1.0))


ONE = {"T=1024, H=4, K=V=64": (1, 1024, 4, 64, 64)}
TWO = ONE | {"8 x 512, H=4, K=48, V=96": (8, 512, 4, 48, 96)}
WIDE = {"T=1024, 256 channels": (1, 1024, 4, 64, 1)}

ATTENTION = {"T=2048, H=16, D=64": (1, 2048, 16, 64, 64), "T=4096, H=8, D=64": (1, 4096, 8, 64, 64)}

CASES: tuple[BenchCase, ...] = (
    RecurrenceCase(
        "gated_delta_rule", gated_delta_rule, delta_inputs, "transformers", TWO, transformers_fallback, products=3
    ),
    RecurrenceCase(
        "gated_linear_attention, decay per head",
        gated_linear_attention,
        _head_inputs,
        "fla naive",
        ONE,
        _naive_simple_gla,
        products=2,
    ),
    RecurrenceCase(
        "gated_linear_attention, per channel",
        gated_linear_attention,
        _channel_inputs,
        "fla naive",
        ONE,
        _naive_gla,
        products=2,
    ),
    RecurrenceCase(
        "gated_scan", gated_scan, _scan_inputs, "fla naive", WIDE, _naive_hgrn, products=0, takes_chunk_size=False
    ),
    *(
        BandedCase(
            f"banded_attention, span of {span:.0%}",
            banded_attention,
            _banded_inputs,
            "SDPA",
            ATTENTION,
            span,
        )
        for span in (1.0, 0.5, 0.25)
    ),
    *(
        RoutedCase(
            f"head_routed_attention, {active:.0%} active",
            head_routed_attention,
            partial(_routed_inputs, active),
            "SDPA",
            ATTENTION,
            active,
        )
        for active in (1.0, 0.75, 0.5)
    ),
)
