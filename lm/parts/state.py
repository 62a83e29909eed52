"""What one layer remembers between calls."""

from torch import Tensor


class LayerState:
    """What one layer remembers between calls: named tensors, each [N, ...] with one row per sequence."""

    def __init__(self, **tensors: Tensor):
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def update(self, **tensors: Tensor) -> None:
        """Replace tensors by their new values."""
        self._tensors.update(tensors)

    def tensors(self) -> dict[str, Tensor]:
        """The state's content, exactly as large as what is remembered."""
        return dict(self._tensors)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over `tensors()` of another state of the same layer."""
        self._tensors = dict(tensors)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())
