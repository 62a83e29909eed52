"""Head-routed attention: softmax attention of the (token, head) pairs that a router has chosen."""

from torch import Tensor

from ..operator import operator
from ..shared.band import PerHead
from ..shared.sequences import Sequences
from . import chunked, reference
from .arguments import RoutedArguments
from .step import head_routed_attention_step

__all__ = ["head_routed_attention", "head_routed_attention_flops", "head_routed_attention_step"]


def head_routed_attention_flops(D: int, keys: float, active: float = 1.0) -> float:
    """Forward matmul FLOPs per token and head: two products with `keys` keys, for the `active` share of heads."""
    return active * 4 * keys * D


@operator(
    arguments=RoutedArguments,
    step=head_routed_attention_step,
    flops=head_routed_attention_flops,
    reference=reference.run,
    chunked=chunked.run,
    native="native:run",
    triton="triton_attention:run",
)
def head_routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    *,
    sink: PerHead = None,
    window: PerHead = None,
    cu_seqlens: Tensor | None = None,
    sequences: Sequences | None = None,
    backend: str = "auto",
) -> Tensor:
    """o_ti = gate_ti sum_j softmax_j(q_ti k_j / sqrt(D)) v_j over j <= t, for the pairs whose gate is not 0; else 0.

    Attention of Mixture-of-Head (arXiv 2410.11842, eq. 2) without the output projection: keys and values of all tokens
    stay, for a token that does not use a head is a key of others that do; queries are computed where they are used. An
    inactive pair gets no gradient, its gate included.

    q: [B, T, H, D]; k, v: [B, T, H_kv, D], H a multiple of H_kv, query head i reads key head i // (H / H_kv). gate:
    [B, T, H], float32 or q's dtype. window: the last tokens that a query sees, itself included, one number or one per
    key head; None is all. sink: with a window, the first tokens of its document that a query sees besides.
    cu_seqlens: [N + 1] int offsets of N documents packed along T, then B = 1; a document may be empty.
    sequences: the same, made once for many calls, in the place of cu_seqlens.
    backend: "auto" is the fastest one registered for the device, see `kernels.backend`.

    Returns o [B, T, H, D] in q's dtype. Raises ValueError on inputs that do not fit, BackendUnavailable on a backend
    that cannot run here.
    """
    arguments = RoutedArguments.checked(
        q, k, v, gate, sink=sink, window=window, cu_seqlens=cu_seqlens, sequences=sequences
    )
    return head_routed_attention.run(arguments, backend)
