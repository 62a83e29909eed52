"""Where our tensors lie in a checkpoint: each is some of theirs, stacked by rows. And pieces that families share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig


class SavedTensor(NamedTuple):
    """A tensor of a checkpoint, under the name and with the shape that it has there."""

    name: str
    shape: tuple[int, ...]


class Stacked(NamedTuple):
    """One of our tensors, and the checkpoint's whose rows it stacks in this order."""

    name: str
    parts: tuple[SavedTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Ours from theirs, which have the order of `parts`."""
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Theirs by name, as views of ours."""
        rows = tensor.split([part.shape[0] for part in self.parts])
        return {part.name: piece for part, piece in zip(self.parts, rows, strict=True)}


class ConvKernels(Stacked):
    """Convolution kernels: [channels, width] here, [channels, 1, width] there."""

    @property
    def shape(self) -> tuple[int, ...]:
        channels, _, width = super().shape
        return channels, width

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return super().join(tensors).squeeze(1)

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        return super().split(tensor.unsqueeze(1))


def vector(name: str, theirs: str, n: int) -> Stacked:
    return Stacked(name, (SavedTensor(theirs, (n,)),))


def linear(name: str, rows: Mapping[str, int], columns: int, bias: bool = False) -> Iterator[Stacked]:
    """A matrix here, and its bias if it has one, of the projections there that it stacks, with their number of rows."""
    yield Stacked(f"{name}.weight", tuple(SavedTensor(f"{theirs}.weight", (n, columns)) for theirs, n in rows.items()))
    if bias:
        yield Stacked(f"{name}.bias", tuple(SavedTensor(f"{theirs}.bias", (n,)) for theirs, n in rows.items()))


def ffn(options: Any, model: "BaseModelConfig") -> Iterator[Stacked]:
    """The SwiGLU of the layer with these options."""
    assert model.ffn is not None
    hidden, bias = options.ffn_hidden, model.ffn.bias
    yield from linear("ffn.gate_up_proj", {"mlp.gate_proj": hidden, "mlp.up_proj": hidden}, model.d_model, bias)
    yield from linear("ffn.down_proj", {"mlp.down_proj": model.d_model}, hidden, bias)


def whole(model: "BaseModelConfig", layers: Iterable[Iterable[Stacked]]) -> Iterator[Stacked]:
    """Every tensor in order; `layers` by their own names. A tied head is the embedding and not named."""
    yield from linear("embed", {"model.embed_tokens": model.vocab_size}, model.d_model)
    for i, rows in enumerate(layers):
        for row in rows:
            parts = tuple(SavedTensor(f"model.layers.{i}.{part.name}", part.shape) for part in row.parts)
            yield type(row)(f"blocks.{i}.{row.name}", parts)
    yield vector("norm.weight", "model.norm.weight", model.d_model)
    if not model.tie_embeddings:
        yield from linear("lm_head", {"lm_head": model.vocab_size}, model.d_model)
