"""One token of banded attention, for decoding."""

from torch import Tensor

from ..operator import step
from . import reference
from .arguments import BandedStepArguments


@step(arguments=BandedStepArguments, reference=reference.step, native="native:step", triton="triton_step:run")
def banded_attention_step(
    q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """One token of `banded_attention` for each of N sequences over the keys in its cache, without autograd.

    q: [N, H, D]. k, v: [N, S, H_kv, D], any strides. seen: bool, the slots that hold a key the token sees, [N, S] or,
    by key head, [N, S, H_kv]; None is all. A query sees one key at least, its own. Returns [N, H, D] in q's dtype.
    Raises ValueError on inputs that do not fit, BackendUnavailable on a backend that cannot run here.
    """
    return banded_attention_step.run(BandedStepArguments.checked(q, k, v, seen=seen), backend)
