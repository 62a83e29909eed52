"""What one layer remembers between calls: named tensors, one row per sequence."""

from typing import Self

from torch import Tensor


class LayerState:
    """Named tensors, each [N, ...], or states of their own, whose names nest: `fast.w1`.

    The layer itself reads and replaces live values, by `state[name]` and `update`, and a step may write into them. What
    anybody else gets, by `tensors`, `rows` and `clone`, is a copy, and stays what it was whatever the layer does next.
    """

    calls = 0
    """Calls that have continued this state: what `Cache` tells a stale one by."""

    def __init__(self, **parts: "Tensor | LayerState"):
        self._parts = parts

    def __getitem__(self, name: str) -> Tensor:
        part = self._parts[name]
        if isinstance(part, LayerState):
            raise TypeError(f"state {name!r} is a state of its own; its tensors are in state.part({name!r})")
        return part

    def part(self, name: str) -> "LayerState":
        """The nested state `name`."""
        part = self._parts[name]
        if not isinstance(part, LayerState):
            raise TypeError(f"state {name!r} is a tensor; read it as state[{name!r}]")
        return part

    def update(self, **parts: "Tensor | LayerState") -> None:
        """Replace parts by their new values."""
        self._parts.update(parts)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all tensors by dotted name, exactly as large as what is remembered."""
        return {name: tensor.clone() for name, tensor in self._live().items()}

    def rows(self, index: list[int]) -> Self:
        """A state of its own with the sequences `index`, which may repeat, be left out or change places."""
        return self._holding({name: tensor[index] for name, tensor in self._live().items()})

    def clone(self) -> Self:
        """A state of its own with the same content."""
        return self._holding(self.tensors())

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over `tensors()` of another state of the same layer."""
        nested: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            own, dot, rest = name.partition(".")
            if dot:
                nested.setdefault(own, {})[rest] = tensor
            else:
                self._parts[own] = tensor
        for name, parts in nested.items():
            self.part(name).load(parts)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._live().values())

    def _live(self) -> dict[str, Tensor]:
        """The tensors themselves, as far as they are in use."""
        found: dict[str, Tensor] = {}
        for name, part in self._parts.items():
            if isinstance(part, LayerState):
                found |= {f"{name}.{key}": tensor for key, tensor in part._live().items()}
            else:
                found[name] = part
        return found

    def _holding(self, tensors: dict[str, Tensor]) -> Self:
        """A state like this one with other tensors."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.calls = 0
        nested = {name: part for name, part in self._parts.items() if isinstance(part, LayerState)}
        twin._parts = {name: part._holding(part._live()) for name, part in nested.items()}
        twin.load(tensors)
        return twin
