"""Strict pydantic models: an unknown key is an error that names the nearest key."""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from .errors import ConfigError, brief

LONGEST_LINE = 800  # characters
PROBLEMS = 20  # that one error names
UNION_MEMBER = re.compile(r"(constrained-)?(int|float|str)|list\[.*\]|dict\[.*\]")


class Strict(BaseModel):
    """Base of every configuration class: no unknown keys, finite numbers, defaults and assignments validated."""

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"a number is wanted, got {str(value).lower()}")
        return value

    @classmethod
    def parse(cls, data: dict[str, Any], where: str = "") -> Self:
        """Validate `data`; every problem becomes one line of a `ConfigError`, prefixed by `where`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = list(dict.fromkeys(_explain(cls, problem) for problem in error.errors()))
            if len(lines) > PROBLEMS:
                lines[PROBLEMS:] = [f"and {len(lines) - PROBLEMS} more problems"]
            prefix = f"{where}: " if where else ""
            raise ConfigError("\n".join(prefix + _cut(line) for line in lines)) from None


def _is_number(annotation: Any) -> bool:
    """Whether a field takes a number, or a number or nothing; pydantic would read true as 1."""
    kinds = set(typing.get_args(annotation) or (annotation,)) - {types.NoneType}
    return bool(kinds) and kinds <= {int, float}


def _cut(line: str) -> str:
    """A line that shows a whole long value loses its middle; it ends with what to do."""
    line = " ".join(line.split("\n"))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 4 :]}"


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """`did you mean X?` for the closest of `words`, or the whole list when nothing is close."""
    words, word = list(words), word[:100]
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(sorted(words))}"


def _explain(cls: type[Strict], problem: Any) -> str:
    path = _dotted(problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, key = problem["loc"]
        owner = _model_at(cls, parents)
        place = _dotted(parents) or "the recipe"
        return f"{path}: unknown key {brief(key)} in {place}; {nearest(str(key), owner.model_fields if owner else [])}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing"):
        return f"{path}: {message}" if path else message
    for bound in problem.get("ctx", {}).values():
        if isinstance(bound, float):
            message = f"{message.rpartition(' ')[0]} {bound:g}"  # pydantic writes all the zeros of 1e-20
    said = f"{message}, got {brief(problem['input'])}"
    return f"{path}: {said}" if path else said


def _dotted(parts: Sequence[str | int]) -> str:
    """A place in the tree, without the types of a union that pydantic puts into it.

    A key that would break the line or is very long is written as `shown` writes it.
    """
    keys = [part for part in parts if not (isinstance(part, str) and UNION_MEMBER.fullmatch(part))]
    return ".".join(brief(x) if isinstance(x, str) and (len(x) > 80 or not x.isprintable()) else str(x) for x in keys)


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
