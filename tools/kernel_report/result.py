"""What the report is made of: one `CaseResult` per case, subject, target and shape."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ...kernels.shared.devices import Device
from .cases import Shape
from .compile import Build
from .hardware import BOUND_ON
from .roofline import Work, slowest

PASSES = ("forward", "backward")


@dataclass
class KernelLaunch:
    """One launch. `build` where it was compiled; `work` and `seconds`, the bounds, where the target has a device."""

    name: str
    tiles: dict[str, int]
    programs: int
    build: Build | None
    work: Work | None
    seconds: dict[str, float]

    @property
    def unique(self) -> float:
        return self.work.unique if self.work else 0.0

    @property
    def bound(self) -> float:
        return max(self.seconds.values(), default=0.0)

    @property
    def limit(self) -> str:
        return slowest(self.seconds)


@dataclass
class Pass:
    """Forward or backward: launches in order, and the calls and bytes of PyTorch operations around them."""

    kernels: list[KernelLaunch]
    torch_ops: dict[str, int]
    torch_bytes: float


@dataclass
class CaseResult:
    """One subject's run of a case; a decoding step has nothing in its backward pass. Pairs are forward and backward."""

    case: str
    subject: str
    target: str
    shape: Shape
    passes: list[Pass]  # forward, backward
    host_us: dict[str, float] = field(default_factory=dict)  # forward, both

    @property
    def launches(self) -> list[int]:
        return [len(p.kernels) for p in self.passes]

    @property
    def torch_calls(self) -> list[int]:
        return [sum(p.torch_ops.values()) for p in self.passes]

    @property
    def kernels(self) -> list[KernelLaunch]:
        return [kernel for p in self.passes for kernel in p.kernels]

    @property
    def device(self) -> Device | None:
        return BOUND_ON.get(self.target)

    @property
    def tokens(self) -> int:
        """Tokens x heads, the divisor of bytes and times."""
        return self.shape.B * self.shape.T * self.shape.H

    @property
    def bytes(self) -> list[float]:
        """Unique bytes of the launches per token and head."""
        return [sum(kernel.unique for kernel in p.kernels) / self.tokens for p in self.passes]

    @property
    def flops(self) -> list[float]:
        """Of tl.dot per token and head."""
        works = [[kernel.work.flops.values() for kernel in p.kernels if kernel.work] for p in self.passes]
        return [sum(map(sum, found)) / self.tokens for found in works]

    @property
    def torch_bytes(self) -> list[float]:
        return [p.torch_bytes / self.tokens for p in self.passes]

    @property
    def bound_us(self) -> list[float]:
        """The launches' bounds and the PyTorch operations' bytes at HBM's rate."""
        hbm = self.device.hbm if self.device else 1.0
        return [1e6 * (sum(kernel.bound for kernel in p.kernels) + p.torch_bytes / hbm) for p in self.passes]

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them."""
        follows = ("launches", "bytes", "torch_bytes", "flops", "bound_us")
        return asdict(self) | {name: getattr(self, name) for name in follows}


def ratios(ours: CaseResult, peer: CaseResult) -> dict[str, float]:
    """Ours over the peer's, forward and backward together unless named otherwise."""
    pairs = {
        "bytes, forward": (ours.bytes[0], peer.bytes[0]),
        "bytes, backward": (ours.bytes[1], peer.bytes[1]),
        "bytes": (sum(ours.bytes), sum(peer.bytes)),
        "bytes with PyTorch's": (sum(ours.bytes + ours.torch_bytes), sum(peer.bytes + peer.torch_bytes)),
        "launches": (sum(ours.launches), sum(peer.launches)),
        "FLOPs": (sum(ours.flops), sum(peer.flops)),
        "bound": (sum(ours.bound_us), sum(peer.bound_us)),
    }
    if ours.host_us:
        pairs["host time, forward"] = (ours.host_us["forward"], peer.host_us["forward"])
        pairs["host time"] = (ours.host_us["both"], peer.host_us["both"])
    return {name: a / b for name, (a, b) in pairs.items() if b}


def tiles(launch: dict[str, Any]) -> dict[str, int]:
    """The block sizes among a launch's compile-time arguments: BT, BK, BV ..., C."""
    constants = launch["constants"] if "constants" in launch else launch["constexprs"]
    return {name: v for name, v in sorted(constants.items()) if name == "C" or (len(name) == 2 and name[0] == "B")}
