"""A lower bound on a launch's time from its exact counts: the slowest of five things that it cannot do without.

Against published H100 times of bandwidth-bound shapes the sum over launches comes out at 0.8 of the measurement, and at
half of it where few programs run long. Ratios between two designs of one kind carry further than times.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...kernels.shared.devices import Device

# what tl.dot multiplies with: the device's rate, and how many such products make one
PASSES = {
    "bf16": ("bf16", 1),
    "bf16x3": ("bf16", 3),
    "bf16x6": ("bf16", 6),
    "tf32": ("tf32", 1),
    "tf32x3": ("tf32", 3),
    "fp32": ("fp32", 1),
}


@dataclass(frozen=True)
class Work:
    """What one launch does. Bytes are those of 32-byte sectors."""

    read: float  # each sector once: what HBM must deliver if the L2 cache catches every reuse inside the launch
    written: float
    through_l2: float  # between the multiprocessors and the L2 cache
    flops: dict[str, float]  # of tl.dot, by the keys of PASSES
    mufu: float  # exp, log, sqrt ... evaluations
    longest: float  # dot FLOPs of the program with most of them, as bf16 FLOPs that take an H100 the same time

    @property
    def unique(self) -> float:
        return self.read + self.written


def continued(values: Sequence[float], tokens: tuple[int, ...], T: int) -> float:
    """At T, of what has these values at these numbers of tokens: the polynomial through them."""
    return sum(
        value * math.prod((T - other) / (here - other) for other in tokens if other != here)
        for here, value in zip(tokens, values, strict=True)
    )


def extrapolate(counts: Sequence[dict[str, Any]], tokens: tuple[int, ...], T: int, heads: int) -> Work:
    """Work at T tokens and `heads` = batch x heads, from `count.LaunchCount`s of one head at some numbers of tokens.

    Counts are affine in T and two numbers will do; of attention they are quadratic, and it takes three. With a single
    number of tokens, T itself, they are taken as they are.
    """

    def at(values: Iterable[float]) -> float:
        return continued(list(values), tokens, T)

    total = {
        name: heads * at(count[name] for count in counts)
        for name in ("unique_load_bytes", "unique_store_bytes", "sector_bytes", "exps")
    }
    kinds = {kind for count in counts for kind in count["flops"]}
    return Work(
        read=total["unique_load_bytes"],
        written=total["unique_store_bytes"],
        through_l2=total["sector_bytes"],
        flops={kind: heads * at(count["flops"].get(kind, 0) for count in counts) for kind in sorted(kinds)},
        mufu=total["exps"],
        longest=at(count["serial_flops"] for count in counts),
    )


def bounds(work: Work, device: Device, programs: int) -> dict[str, float]:
    """Seconds, one per resource; the launch takes at least the largest. `programs`: the grid's, at the real shape."""
    waves = math.ceil(programs / device.processors)
    return {
        "hbm": work.unique / device.hbm,
        "tensor": sum(PASSES[kind][1] * n / getattr(device, PASSES[kind][0]) for kind, n in work.flops.items()),
        "l2": work.through_l2 / min(programs, device.processors) / device.l2_per_processor,
        "tail": work.longest * waves / (device.bf16 / device.processors),
        "mufu": work.mufu / device.mufu,
    }


def slowest(seconds: dict[str, float]) -> str:
    return max(seconds, key=seconds.__getitem__)
