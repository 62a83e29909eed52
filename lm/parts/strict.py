"""Strict pydantic models: an unknown key is an error that names the nearest key."""

import difflib
import types
import typing
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError


class Strict(BaseModel):
    """Base of every configuration class: no unknown keys, defaults validated, assignments validated."""

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=True)

    @classmethod
    def parse(cls, data: dict[str, Any], where: str = "") -> Self:
        """Validate `data`; every problem becomes one line of a `ConfigError`, prefixed by `where`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [_explain(cls, data, problem) for problem in error.errors()]
            prefix = f"{where}: " if where else ""
            raise ConfigError("\n".join(prefix + line for line in dict.fromkeys(lines))) from None


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """`did you mean X?` for the closest of `words`, or the whole list when nothing is close."""
    words = list(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(sorted(words))}"


def _explain(cls: type[Strict], data: dict[str, Any], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, key = problem["loc"]
        owner = _model_at(cls, parents)
        place = ".".join(str(p) for p in parents) or "the recipe"
        return f"{path}: unknown key {key!r} in {place}; {nearest(str(key), owner.model_fields if owner else [])}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing"):
        return f"{path}: {message}" if path else message
    return f"{path}: {message}, got {problem['input']!r}"


def _model_at(cls: type[BaseModel], parts: list[Any]) -> type[BaseModel] | None:
    """The configuration class that the location `parts` of a validation error points into."""
    current: Any = cls
    for part in parts:
        if isinstance(part, str) and isinstance(current, type) and issubclass(current, BaseModel):
            if part not in current.model_fields:
                continue  # a union tag that pydantic puts into the location
            current = _unwrap(current.model_fields[part].annotation)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _unwrap(annotation: Any) -> Any:
    """The configuration class inside Optional[...], list[...] or dict[str, ...]."""
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for argument in typing.get_args(annotation):
            found = _unwrap(argument)
            if isinstance(found, type) and issubclass(found, BaseModel):
                return found
    return annotation
