"""All that a mixer may know of the model around it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """d_model: width of the residual stream. context: tokens of a training sequence, which a model may exceed later.

    zero_centered_norms: norms of the stream, of queries and of keys multiply by 1 + weight.
    """

    d_model: int
    n_layers: int
    context: int
    norm_eps: float = 1e-6
    zero_centered_norms: bool = False
