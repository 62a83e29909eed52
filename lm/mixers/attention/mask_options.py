"""Options of masks: which keys a query of attention sees."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from ...parts.ranges import LONGEST
from ...parts.strict import Strict
from ..options import FROM_MODEL, Size

if TYPE_CHECKING:  # a layer finds it finished
    Sink = int
else:
    Sink = Annotated[int, Field(ge=0, le=LONGEST)] | None


class MaskConfig(Strict):
    """A query sees the first `sink` tokens of its document and the last `window` ones, itself included."""

    kind: Literal["band"] = "band"
    sink: Sink = FROM_MODEL
    """Default: 64, or a quarter of a quarter of the context if that is less; 0 is a sliding window."""
    window: Size = FROM_MODEL
    """Default: what makes a quarter of the context with the sink."""

    def resolve(self, context: int) -> Self:
        """A copy with both sizes finished."""
        span = max(context // 4, 1)
        sink = min(64, span // 4) if self.sink is None else self.sink
        sizes: dict[str, Any] = {"sink": sink, "window": self.window or max(span - sink, 1)}
        return self.model_copy(update=sizes)
