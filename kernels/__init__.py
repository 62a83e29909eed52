"""Operators: each a readable reference, a chunk-parallel PyTorch form and, where written, kernels; see `backend`."""

from .backend import BackendUnavailable, available_backends, operators
from .gated_delta import gated_delta_rule, gated_delta_rule_flops
from .short_conv import short_conv

__all__ = [
    "BackendUnavailable",
    "available_backends",
    "gated_delta_rule",
    "gated_delta_rule_flops",
    "operators",
    "short_conv",
]
