"""One token of the gated delta rule, for decoding."""

from torch import Tensor

from ..operator import step
from . import reference
from .arguments import DeltaStepArguments


@step(arguments=DeltaStepArguments, reference=reference.step, native="native:step", triton="triton_step:run")
def gated_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    *,
    state: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of `gated_delta_rule` for each of N sequences: updates `state` in place, without autograd.

    q, k: [N, H, K]. v: [N, HV, V]. g: [N, HV] or None. beta: [N, HV]. state: [N, HV, K, V], contiguous. Dtypes as in
    `gated_delta_rule`; the ranges of g and beta are not looked at. Returns o [N, HV, V] in v's dtype. Raises ValueError
    on inputs that do not fit, BackendUnavailable on a backend that cannot run here.
    """
    return gated_delta_rule_step.run(DeltaStepArguments.checked(q, k, v, g, beta, state=state, scale=scale), backend)
