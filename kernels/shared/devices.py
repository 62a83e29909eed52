"""The one table of GPUs: what operators are bounded by and what a training run is measured against."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Peak rates of a card, dense, from its data sheet: bytes/s, FLOP/s, Hz."""

    name: str
    processors: int
    hbm: float
    bf16: float
    tf32: float
    fp32: float
    clock: float

    @property
    def l2_per_processor(self) -> float:
        """64 bytes per clock between a multiprocessor and the second-level cache."""
        return 64 * self.clock

    @property
    def mufu(self) -> float:
        """exp2, log2, rsqrt ...: 16 per clock and multiprocessor."""
        return 16 * self.clock * self.processors


DEVICES = {
    d.name: d
    for d in (
        Device("A100", 108, hbm=2.039e12, bf16=312e12, tf32=156e12, fp32=19.5e12, clock=1.41e9),
        Device("H100", 132, hbm=3.35e12, bf16=989e12, tf32=495e12, fp32=67e12, clock=1.755e9),
        Device("H200", 132, hbm=4.8e12, bf16=989e12, tf32=495e12, fp32=67e12, clock=1.755e9),
        Device("B200", 148, hbm=8e12, bf16=2250e12, tf32=1125e12, fp32=75e12, clock=1.98e9),
    )
}


def device_named(name: str) -> Device | None:
    """The device that the driver calls `name`, such as "NVIDIA H100 80GB HBM3"; None where its rates are not known."""
    if re.search("PCIe|NVL", name):
        return None  # an H100 or H200 of less power
    return next((device for part, device in DEVICES.items() if re.search(rf"\b{part}\b", name)), None)
