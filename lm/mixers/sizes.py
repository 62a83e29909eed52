"""Heads that follow from the model's width where a recipe does not give them."""


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
