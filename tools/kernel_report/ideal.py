"""What attention cannot do without, to hold the counts against: each tensor once through HBM, each seen pair once.

Per token and head at half precision, gates in float32, with `active` the share of (token, head) pairs that are computed
and as many key heads as heads. Beyond it the kernels move their tables (the order of the pairs, the softmax's log_sum
and delta), and multiply what lies behind the diagonal in the tiles it crosses.
"""

from dataclasses import dataclass

HALF, FLOAT32 = 2, 4  # bytes
ALLOWED = 1.1  # times the ideal bytes, for the tables


@dataclass(frozen=True)
class Shape:
    """B rows of T tokens, H heads of dimension K (keys) and V (values)."""

    B: int
    T: int
    H: int
    K: int = 128
    V: int = 128

    def __str__(self) -> str:
        return f"B={self.B} T={self.T} H={self.H} K={self.K} V={self.V}"


@dataclass(frozen=True)
class Ideal:
    """Forward and backward, per token and head; nothing backward for a step."""

    bytes: tuple[float, float]
    flops: tuple[float, float]


def routed_attention(shape: Shape, active: float = 0.5) -> Ideal:
    """Forward: q of active pairs, k, v and the gate are read, o is written, the zeros of inactive pairs included.

    Backward in two passes: q, o, dO of active pairs, k, v and the gate in, dq and dgate out; then q, dO of active
    pairs, k, v and the gate in, dk and dv out. Products per pair and key: Q K^T and P V; then Q K^T, dO V^T and dS K;
    and, with scores made again instead of kept, K Q^T, V dO^T, P^T dO and dS^T Q.
    """
    row = HALF * shape.K
    forward = active * row + 2 * row + FLOAT32 + row
    by_rows = 3 * active * row + 2 * row + FLOAT32 + row + FLOAT32
    by_keys = 2 * active * row + 2 * row + FLOAT32 + 2 * row
    product = 2 * shape.K * active * (shape.T + 1) / 2
    return Ideal((forward, by_rows + by_keys), (2 * product, 7 * product))


def banded_attention(shape: Shape, span: int) -> Ideal:
    """The same where queries see `span` tokens, or as many as there are yet: q, k, v in, o out; q, o, dO, k, v in, dq
    out; q, dO, k, v in, dk, dv out; and no gate."""
    row = HALF * shape.K
    product = 2 * shape.K * (span * (span + 1) / 2 + (shape.T - span) * span) / shape.T
    return Ideal((4 * row, 12 * row), (2 * product, 7 * product))


def attention_step(shape: Shape, keys: int, gated: bool) -> Ideal:
    """Each head's q, and its gate, in, o out; and its keys and values, where it is active, as here all are."""
    row = HALF * shape.K
    return Ideal((2 * keys * row + 2 * row + gated * FLOAT32, 0.0), (4 * shape.K * keys, 0.0))
