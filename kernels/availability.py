"""Why a backend cannot run here, and what to do about it."""

import importlib.util
import os

import torch

from .native import build


def triton_unavailable(device: torch.device) -> str | None:
    """None on a GPU with triton, and on a CPU where TRITON_INTERPRET=1 makes triton interpret its kernels."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'hybridlm[gpu]'"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return (
        f'its kernels need tensors on a CUDA device, these are on {device.type}; move them, use backend="auto", '
        "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels, slowly, for tests"
    )


def fla_unavailable(device: torch.device) -> str | None:
    """None on a GPU with flash-linear-attention."""
    if device.type != "cuda":
        return f'its kernels need tensors on a CUDA device, these are on {device.type}; move them or use backend="auto"'
    missing = [name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; pip install 'hybridlm[gpu]'"
    return None


def native_unavailable(device: torch.device) -> str | None:
    """None on a CPU where the C++ kernels are built for this machine."""
    if device.type != "cpu":
        return f'its kernels need tensors on the CPU, these are on {device.type}; move them or use backend="auto"'
    if build.is_built():
        return None
    if build.compiler() is None:
        return build.no_compiler()
    return "its C++ kernels are not built for this machine; run: hybridlm doctor --build"
