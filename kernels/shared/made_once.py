"""A property that is computed at its first reading."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class made_once(Generic[T]):
    """functools.cached_property without the lock that Python 3.11 has in it and torch.compile cannot enter."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make, self.name, self.__doc__ = make, make.__name__, make.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> "made_once[T]": ...

    @overload
    def __get__(self, owner: object, kind: type) -> T: ...

    def __get__(self, owner: object | None, kind: type) -> "made_once[T] | T":
        if owner is None:
            return self
        value = owner.__dict__[self.name] = self.make(owner)  # read from here from now on
        return value
