"""What is run: for each operator its inputs at a shape, our Triton form and the peers it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.backend import Policy
from ...kernels.operator import OPERATORS
from .ideal import Ideal, Shape, attention_step, banded_attention, routed_attention

STEP_SEQUENCES = 64  # sequences decoded at once, per row of the batch of the shape asked for
STEP_KEYS = 1024  # in each one's cache, for attention
SINK, WINDOW = 64, 0.5  # tokens, and share of the tokens that is a whole number of tiles at all that are counted


@dataclass(frozen=True)
class Case:
    """One operator with one kind of gate, and the names in `peers.PEERS` that it is compared with."""

    name: str
    op: str
    inputs: Callable[[Shape, torch.device], dict[str, Tensor]]
    peers: tuple[str, ...]
    cut_by_length: bool = False  # our kernels cut sequences into a number of segments that depends on T
    quadratic: bool = False  # work grows with the square of T: attention, which has no final state
    ideal: Callable[[Shape], Ideal] | None = None  # what it cannot do without
    window: float = 0.0  # share of the tokens in a query's window, where that is an argument; SINK is another

    @property
    def step(self) -> bool:
        """Decoding, one token of each sequence: no backward pass, no T."""
        return self.op.endswith("_step")

    def at(self, shape: Shape) -> Shape:
        return replace(shape, B=shape.B * STEP_SEQUENCES, T=1) if self.step else shape

    def numbers(self, x: dict[str, Tensor]) -> dict[str, int]:
        """What the operator takes besides tensors."""
        return {"sink": SINK, "window": round(self.window * x["q"].shape[1])} if self.window else {}

    def call(self, x: dict[str, Tensor]) -> Tensor:
        """Our Triton form, by the public operator, checks included; on the meta device too."""
        op: Any = OPERATORS[self.op]
        if self.step or self.quadratic:
            return op(**x, **self.numbers(x), backend="triton")
        return op(**x, output_final_state=True, backend="triton")[0]

    def allow_anywhere(self) -> None:
        """Let the triton backend run wherever it is asked to, for processes in which nothing is launched."""
        backends = OPERATORS[self.op].backends
        backends["triton"] = replace(backends["triton"], policy=Policy())


def _tokens(shape: Shape) -> tuple[int, ...]:
    return shape.B, shape.T, shape.H


def _sequences(shape: Shape) -> tuple[int, ...]:
    return shape.B, shape.H


def _attention(
    lead: Callable[[Shape], tuple[int, ...]], gate: str, beta: bool = False, state: bool = False
) -> Callable[[Shape, torch.device], dict[str, Tensor]]:
    """q, k, v [*lead, head dim] bf16, g [*lead] or [*lead, K] float32 <= 0, beta bf16, state float32."""

    def inputs(shape: Shape, device: torch.device) -> dict[str, Tensor]:
        rows, K, V = lead(shape), shape.K, shape.V
        x = {
            "q": F.normalize(torch.randn(*rows, K, device=device), dim=-1).bfloat16(),
            "k": F.normalize(torch.randn(*rows, K, device=device), dim=-1).bfloat16(),
            "v": torch.randn(*rows, V, device=device).bfloat16(),
            "g": F.logsigmoid(torch.randn(*rows, *((K,) if gate == "vector" else ()), device=device) + 3),
        }
        if beta:
            x["beta"] = torch.rand(*rows, device=device).bfloat16()
        if state:
            x["state"] = torch.zeros(shape.B, shape.H, K, V, device=device)
        return x

    return inputs


def _scan(lead: Callable[[Shape], tuple[int, ...]], state: bool = False) -> Callable[..., dict[str, Tensor]]:
    """x bf16, g float32 [..., H * K] channels."""

    def inputs(shape: Shape, device: torch.device) -> dict[str, Tensor]:
        rows = (*lead(shape)[:-1], shape.H * shape.K)
        x = {
            "x": torch.randn(*rows, device=device).bfloat16(),
            "g": F.logsigmoid(torch.randn(*rows, device=device) + 3),
        }
        return x | ({"state": torch.zeros(*rows, device=device)} if state else {})

    return inputs


def _banded(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """q, k, v bf16 of as many key heads as heads."""
    q, k, v = (torch.randn(*_tokens(shape), shape.K, device=device).bfloat16() for _ in range(3))
    return {"q": q, "k": k, "v": v}


def _routed(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """The same, and a gate that has every second token use a head."""
    used = torch.arange(shape.T, device=device)[:, None] % 2 == 0
    return _banded(shape, device) | {"gate": used.float().expand(shape.B, -1, shape.H).contiguous()}


def _banded_step(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """One token, and a cache of STEP_KEYS."""
    q = torch.randn(shape.B, shape.H, shape.K, device=device).bfloat16()
    k, v = (torch.randn(shape.B, STEP_KEYS, shape.H, shape.K, device=device).bfloat16() for _ in range(2))
    return {"q": q, "k": k, "v": v}


def _routed_step(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """The same, and a gate that uses every head."""
    return _banded_step(shape, device) | {"gate": torch.ones(shape.B, shape.H, device=device)}


CASES = {
    case.name: case
    for case in (
        Case(
            "gated_delta_rule",
            "gated_delta_rule",
            _attention(_tokens, "scalar", beta=True),
            ("chunk_gated_delta_rule",),
        ),
        Case(
            "gated_linear_attention",
            "gated_linear_attention",
            _attention(_tokens, "vector"),
            ("chunk_gla",),
        ),
        Case(
            "gated_linear_attention, scalar gates",
            "gated_linear_attention",
            _attention(_tokens, "scalar"),
            ("chunk_simple_gla",),
        ),
        Case(
            "gated_scan",
            "gated_scan",
            _scan(_tokens),
            ("chunk_hgrn", "fused_recurrent_hgrn"),
            cut_by_length=True,
        ),
        Case(
            "banded_attention",
            "banded_attention",
            _banded,
            ("parallel_attn",),
            quadratic=True,
            ideal=lambda shape: banded_attention(shape, SINK + round(WINDOW * shape.T)),
            window=WINDOW,
        ),
        Case(
            "head_routed_attention",
            "head_routed_attention",
            _routed,
            ("parallel_attn",),
            quadratic=True,
            ideal=routed_attention,
        ),
        Case(
            "gated_delta_rule_step",
            "gated_delta_rule_step",
            _attention(_sequences, "scalar", beta=True, state=True),
            ("gated_delta_rule, 1 token",),
        ),
        Case(
            "gated_linear_attention_step",
            "gated_linear_attention_step",
            _attention(_sequences, "vector", state=True),
            ("gla, 1 token",),
        ),
        Case(
            "gated_scan_step",
            "gated_scan_step",
            _scan(_sequences, state=True),
            ("hgrn, 1 token",),
        ),
        Case(
            "banded_attention_step",
            "banded_attention_step",
            _banded_step,
            (),
            ideal=lambda shape: attention_step(shape, STEP_KEYS, gated=False),
        ),
        Case(
            "head_routed_attention_step",
            "head_routed_attention_step",
            _routed_step,
            (),
            ideal=lambda shape: attention_step(shape, STEP_KEYS, gated=True),
        ),
    )
}


def check_covered() -> None:
    """Raises ValueError naming the operators that have Triton kernels and no case."""
    with_kernels = {name for name, op in OPERATORS.items() if "triton" in op.backends}
    missing = sorted(with_kernels - {case.op for case in CASES.values()})
    if missing:
        raise ValueError(
            f"no case runs the Triton kernels of {', '.join(missing)}; add one to CASES in tools/kernel_report/cases.py"
        )
