"""One token of the gated scan, for decoding."""

from torch import Tensor

from ..operator import step
from . import reference
from .arguments import ScanStepArguments


@step(arguments=ScanStepArguments, reference=reference.step, native="native:step", triton="triton_step:run")
def gated_scan_step(x: Tensor, g: Tensor, *, state: Tensor, backend: str = "auto") -> Tensor:
    """One token of `gated_scan` for each of N sequences: updates `state` in place, without autograd.

    x, g: [N, ...]. state: the same shape, contiguous. Dtypes as in `gated_scan`; the range of g is not looked at.
    Returns h [N, ...] in x's dtype. Raises ValueError on inputs that do not fit, BackendUnavailable on a backend that
    cannot run here.
    """
    return gated_scan_step.run(ScanStepArguments.checked(x, g, state=state), backend)
