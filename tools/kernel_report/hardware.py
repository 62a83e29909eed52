"""What the kernels are compiled for: the limits of each target, and the device that it stands for."""

import math
from dataclasses import dataclass

from ...kernels.shared.devices import DEVICES


@dataclass(frozen=True)
class Target:
    """One architecture: the limits that decide how many blocks (programs) share a multiprocessor."""

    name: str
    backend: str  # triton's: cuda | hip
    arch: int | str
    card: str  # a device of this architecture, whose name a library may ask for
    processors: int  # of that card
    registers: int  # 32-bit, per multiprocessor
    warps: int
    blocks: int
    shared: int  # bytes per multiprocessor
    shared_per_block: int
    shared_reserved: int  # bytes the driver keeps per block
    warp_size: int = 32
    tensor_memory: int = 0  # columns


A100, H100, B200 = (DEVICES[name].processors for name in ("A100", "H100", "B200"))
TARGETS = {
    t.name: t
    for t in (
        Target("sm_80", "cuda", 80, "NVIDIA A100", A100, 65536, 64, 32, 164 << 10, 163 << 10, 1024),
        Target("sm_90", "cuda", 90, "NVIDIA H100", H100, 65536, 64, 32, 228 << 10, 227 << 10, 1024),
        Target(
            "sm_100", "cuda", 100, "NVIDIA B200", B200, 65536, 64, 32, 228 << 10, 227 << 10, 1024, tensor_memory=512
        ),
        Target("sm_120", "cuda", 120, "NVIDIA GeForce RTX 5090", 170, 65536, 48, 24, 100 << 10, 99 << 10, 1024),
        # a compute unit has 4 SIMDs of 512 vector registers per lane and 8 waves each
        Target("gfx942", "hip", "gfx942", "AMD Instinct MI300X", 304, 4 * 512 * 64, 32, 32, 64 << 10, 64 << 10, 0, 64),
    )
}


BOUND_ON = {"sm_80": DEVICES["A100"], "sm_90": DEVICES["H100"]}
"""The device whose rates bound times on a target; other targets are only compiled for."""


def occupancy(target: Target, registers: int, shared: int, warps: int) -> int:
    """Blocks per multiprocessor: the scarcest of registers, shared memory, warps and block slots. 0: it cannot launch.

    Registers are handed out per warp in units of 256 (AMD: 8 per lane) and warps live on one of four partitions.
    """
    if shared > target.shared_per_block or registers <= 0:
        return 0
    unit = 8 * target.warp_size
    per_warp = math.ceil(registers * target.warp_size / unit) * unit
    warps_by_registers = min(target.registers // 4 // per_warp * 4, target.warps)
    by_shared = target.blocks
    if shared + target.shared_reserved:
        by_shared = target.shared // (shared + target.shared_reserved)
    return min(warps_by_registers // warps, by_shared, target.warps // warps, target.blocks)
