"""Options of mixers and the sizes that follow from the model's. Nothing here needs torch: a recipe is read without."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from ..parts.ranges import WIDEST
from ..parts.shape import ModelShape
from ..parts.strict import Strict

FROM_MODEL: Any = None
"""The default of an option that `MixerConfig.resolve` sizes from the model."""

if TYPE_CHECKING:  # a layer finds it finished
    Size = int
    SizeOfPairs = int
else:  # a recipe may leave it out
    Size = Annotated[int, Field(gt=0, le=WIDEST)] | None
    SizeOfPairs = Annotated[int, Field(gt=1, le=WIDEST)] | None


class MixerConfig(Strict):
    """Options every mixer has. A `Size` may be left out of a recipe; `resolve` finishes it, and layers see no None."""

    norm: Literal["pre", "post"] = "pre"
    """`pre`: x + mixer(norm(x)); `post`: x + norm(mixer(x)), for the mixer and the FFN of this layer."""
    ffn_hidden: Size = FROM_MODEL
    """Hidden width of this layer's FFN; default: that of the model's `ffn` section."""

    def in_model(self, index: int, layers: "Sequence[MixerConfig]") -> Self:
        """These options, those of layer `index` of a model, where an option says something by layer: `layers` are the
        options of all, in order of depth. Raises ValueError when they do not fit."""
        return self

    def resolve(self, shape: ModelShape) -> Self:
        """A copy with every `Size` of the mixer finished. Raises ValueError when the sizes contradict."""
        return self.model_copy()

    def unfinished(self) -> list[str]:
        """Names of the sizes that are still to be had from the model."""
        fields = type(self).model_fields.items()
        sized = (name for name, field in fields if field.annotation in (Size, SizeOfPairs))
        return [name for name in sized if getattr(self, name) is None]


class ChunkedConfig(MixerConfig):
    """Options of mixers that work on chunks of tokens. They change time and memory, not what is computed."""

    chunk_size: Literal[16, 32, 64] = 64
    recompute: bool = False
    """Rebuild the memories between chunks in the backward pass rather than keep them."""


def head_sizes(d_model: int, head_dim: int | None, n_heads: int | None, widest: int = 64) -> tuple[int, int]:
    """(head_dim, n_heads), whichever is missing sized so that the heads together are about as wide as the model.

    Heads are `widest` channels wide, or a quarter of a model that has no room for four of them.
    """
    if head_dim is None:
        narrow = max(16, d_model // 4)
        head_dim = max(d_model // n_heads, 2) if n_heads else (widest if d_model >= 4 * widest else narrow)
        head_dim += head_dim % 2
    return head_dim, n_heads or max(1, d_model // head_dim)


def head_count(d_model: int, most: int, narrowest: int) -> int:
    """As many heads as leave each `narrowest` of the model's channels, at most `most`."""
    return min(most, max(1, d_model // narrowest))
