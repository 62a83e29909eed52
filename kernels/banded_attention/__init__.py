"""Banded attention: softmax attention to the last tokens and the first ones, as many as each key head has."""

from torch import Tensor

from ..operator import operator
from ..shared.band import PerHead
from ..shared.sequences import Sequences
from . import chunked, reference
from .arguments import BandedArguments
from .step import banded_attention_step

__all__ = ["banded_attention", "banded_attention_flops", "banded_attention_step"]


def banded_attention_flops(D: int, keys: float) -> float:
    """Forward matmul FLOPs per token and head: two products with `keys` keys."""
    return 4 * keys * D


@operator(
    arguments=BandedArguments,
    step=banded_attention_step,
    flops=banded_attention_flops,
    reference=reference.run,
    chunked=chunked.run,
    native="native:run",
    triton="triton_attention:run",
)
def banded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sink: PerHead,
    window: PerHead,
    cu_seqlens: Tensor | None = None,
    sequences: Sequences | None = None,
    backend: str = "auto",
) -> Tensor:
    """o_ti = sum_j softmax_j(q_ti k_j / sqrt(D)) v_j over j <= t with t - j < window or j < sink.

    A sliding window is the case sink = 0, dense causal attention the case window = None. Sinks and windows of MoA
    (arXiv 2406.14909), where a head's span is the sum of the two, and of StreamingLLM (arXiv 2309.17453).

    q: [B, T, H, D]; k, v: [B, T, H_kv, D], H a multiple of H_kv, query head i reads key head i // (H / H_kv). window:
    the last tokens that a query sees, itself included; None is all. sink: the first tokens of its document that it sees
    besides. One number, or one per key head.
    cu_seqlens: [N + 1] int offsets of N documents packed along T, then B = 1; a document may be empty.
    sequences: the same, made once for many calls, in the place of cu_seqlens.
    backend: "auto" is the fastest one registered for the device, see `kernels.backend`.

    Returns o [B, T, H, D] in q's dtype. Raises ValueError on inputs that do not fit, BackendUnavailable on a backend
    that cannot run here.
    """
    arguments = BandedArguments.checked(q, k, v, sink=sink, window=window, cu_seqlens=cu_seqlens, sequences=sequences)
    return banded_attention.run(arguments, backend)
