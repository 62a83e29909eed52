"""One token of banded attention in Triton."""

from torch import Tensor

from ..shared.triton_band_step import attention_step
from ..shared.triton_common import check_inputs
from .arguments import BandedStepArguments


def run(x: BandedStepArguments) -> Tensor:
    """As the reference's step, for float32, bfloat16, float16 and head dims up to 256."""
    check_inputs("banded_attention_step", x.q, D=x.q.shape[-1])
    return attention_step(x.q, x.k, x.v, None, x.seen)
