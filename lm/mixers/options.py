"""Options of mixers and the sizes that follow from the model's. Nothing here needs torch: a recipe is read without."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from ..parts.strict import Strict

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig


class MixerConfig(Strict):
    """Options every mixer has. Options that are None are sized from the model by `resolve`."""

    norm: Literal["pre", "post"] = "pre"
    """`pre`: x + mixer(norm(x)); `post`: x + norm(mixer(x)), for the mixer and the FFN of this layer."""
    ffn_hidden: int | None = Field(default=None, gt=0)
    """Hidden width of this layer's FFN; None: that of the model's `ffn` section."""

    def resolve(self, model: "BaseModelConfig") -> Self:
        """A copy in which nothing is None that the mixer needs. Raises ValueError when the sizes contradict."""
        return self.model_copy()


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
