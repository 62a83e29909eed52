"""When a run is beyond help: one step after the other is skipped because its gradient is not finite."""

import math
from collections.abc import Callable

from ..parts.errors import NaNError
from .faults import together


class Health:
    """Counts the steps skipped in a row; `limit` of them end the run.

    A skipped step leaves weights and moments alone. Where the loss is not finite either, the weights are past saving.
    """

    def __init__(self, limit: int):
        self.limit, self.in_a_row, self.loss = limit, 0, 0.0

    def count(self, applied: bool, loss: float) -> None:
        """Take in one step, the same on every rank."""
        self.in_a_row = 0 if applied else self.in_a_row + 1
        self.loss = loss

    @property
    def well(self) -> bool:
        """Whether the latest step was applied: else its state may be no better than that of a broken run."""
        return self.in_a_row == 0

    def check(self, step: int, *, last: bool, kept: Callable[[], str]) -> None:
        """Raise NaNError after too many skipped steps, or at the last one if the loss is not finite; on every rank.

        kept: says what there is to go on from.
        """
        if self.in_a_row >= self.limit or (last and not self.well and not math.isfinite(self.loss)):
            with together():
                raise NaNError(
                    f"step {step}: the last {self.in_a_row} steps were skipped because their gradients are not finite, "
                    f"and not saved; {kept()}. Go on with a lower optim.lr, or look for a weight that is NaN"
                )
