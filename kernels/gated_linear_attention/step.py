"""One token of gated linear attention, for decoding."""

from torch import Tensor

from ..operator import step
from . import reference
from .arguments import LinearStepArguments


@step(arguments=LinearStepArguments, reference=reference.step, native="native:step", triton="triton_step:run")
def gated_linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of `gated_linear_attention` for each of N sequences: updates `state` in place, without autograd.

    q, k: [N, H, K]. v: [N, H, V]. g: [N, H, K], [N, H] or None. state: [N, H, K, V], contiguous. Dtypes as in
    `gated_linear_attention`; the range of g is not looked at. Returns o [N, H, V] in v's dtype. Raises ValueError on
    inputs that do not fit, BackendUnavailable on a backend that cannot run here.
    """
    return gated_linear_attention_step.run(LinearStepArguments.checked(q, k, v, g, state=state, scale=scale), backend)
