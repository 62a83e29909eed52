"""One token of head-routed attention, for decoding."""

from torch import Tensor

from ..operator import step
from . import reference
from .arguments import RoutedStepArguments


@step(arguments=RoutedStepArguments, reference=reference.step, native="native:step", triton="triton_step:run")
def head_routed_attention_step(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, *, seen: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """One token of `head_routed_attention` for each of N sequences over the keys in its cache, without autograd.

    q: [N, H, D]. k, v: [N, S, H_kv, D], any strides; a key head none of whose queries is active is not read. gate:
    [N, H], float32 or q's dtype. seen: bool, the slots that hold a key the token sees, [N, S] or, by key head,
    [N, S, H_kv]; None is all. A query sees one key at least, its own. Returns [N, H, D] in q's dtype. Raises ValueError
    on inputs that do not fit, BackendUnavailable on a backend that cannot run here.
    """
    return head_routed_attention_step.run(RoutedStepArguments.checked(q, k, v, gate, seen=seen), backend)
