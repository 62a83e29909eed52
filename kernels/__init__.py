"""Operators: each a readable reference, a chunk-parallel PyTorch form and, where written, kernels; see `operator`."""

if __name__ != "kernels":  # transformers looks for another package of this name, and meets this folder from beside it
    from .backend import BackendUnavailable
    from .banded_attention import banded_attention, banded_attention_flops, banded_attention_step
    from .gated_delta import gated_delta_rule, gated_delta_rule_flops, gated_delta_rule_step
    from .gated_linear_attention import (
        gated_linear_attention,
        gated_linear_attention_flops,
        gated_linear_attention_step,
    )
    from .gated_scan import gated_scan, gated_scan_flops, gated_scan_step
    from .head_routed_attention import (
        head_routed_attention,
        head_routed_attention_flops,
        head_routed_attention_step,
    )
    from .operator import Recurrence, available_backends, operators
    from .short_conv import short_conv, short_conv_step

__all__ = [
    "BackendUnavailable",
    "Recurrence",
    "available_backends",
    "banded_attention",
    "banded_attention_flops",
    "banded_attention_step",
    "gated_delta_rule",
    "gated_delta_rule_flops",
    "gated_delta_rule_step",
    "gated_linear_attention",
    "gated_linear_attention_flops",
    "gated_linear_attention_step",
    "gated_scan",
    "gated_scan_flops",
    "gated_scan_step",
    "head_routed_attention",
    "head_routed_attention_flops",
    "head_routed_attention_step",
    "operators",
    "short_conv",
    "short_conv_step",
]
