"""Which documents a recipe's `select` takes."""

import math
import re
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

from ..parts.errors import ConfigError
from .document import Document

if TYPE_CHECKING:
    from ..recipe.data import Select

CALENDAR = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")  # a year, a month or a day
DATED = re.compile(r"\d{4}-\d\d(-\d\d|$)")


def selected(document: Document, select: "Select", position: float) -> bool:
    """Whether all conditions hold; min and max are inclusive, `position` lies in the hash interval [lo, hi).

    A field that is None lies within no bounds and among no values. A bound that is a year, a month or a day means all
    of it. Raises ConfigError for a field that there is not, and for a bound of another type.
    """
    if select.hash is not None and not select.hash[0] <= position < select.hash[1]:
        return False
    if select.field is None:
        return True
    value = field_of(document, select.field)
    if value is None:
        return select.min is None and select.max is None and select.among is None
    try:
        return (
            (select.min is None or _order(value, select.min) >= 0)
            and (select.max is None or _order(value, select.max) <= 0)
            and (select.among is None or bool(named(value, select.among)))
            and (select.exclude is None or not named(value, select.exclude))
        )
    except TypeError:
        bounds = (select.min, select.max, *(select.among or ()), *(select.exclude or ()))
        bound = next(bound for bound in bounds if bound is not None)
        fix = "as a date, e.g. 2014-12-31" if isinstance(value, date) else "in the field's type"
        raise ConfigError(
            f"select compares {select.field}={value!r} of {document.id} with {bound!r}; write the bound {fix}"
        ) from None


def field_of(document: Document, field: str) -> Any:
    """The document's id, or what its metadata holds under this name; ConfigError when there is no such name.

    NaN, which stands for what is missing where a column is of numbers, is None.
    """
    if field == "id":
        return document.id
    if field not in document.meta:
        known = ", ".join(sorted({"id", *document.meta}))
        raise ConfigError(f"select.field={field!r} is not in {document.id}; its fields: {known}")
    value = document.meta[field]
    return None if isinstance(value, float) and math.isnan(value) else value


def _order(value: Any, bound: Any) -> int:
    """Below 0, 0 or above 0 as `value` lies before, at or behind `bound`; TypeError when they do not compare."""
    if isinstance(value, date) or (isinstance(value, str) and DATED.match(value)):
        value, bound = _dates(value, bound)
    return (value > bound) - (value < bound)


def named(value: Any, values: list[Any]) -> list[Any]:
    """Those of `values`, which a recipe names, that a document's value is."""
    if isinstance(value, date):
        return [one for one in values if _order(value, one) == 0]
    return [value] if value in values else []


def _dates(value: date | str, bound: Any) -> tuple[Any, Any]:
    """Both as text as long as a bound that is a year, month or day, or as a value that is; else both as times, or both
    as text if neither is a time.
    """
    if isinstance(bound, str) and CALENDAR.fullmatch(bound):
        return str(value)[: len(bound)], bound
    if isinstance(value, str) and CALENDAR.fullmatch(value):
        return value, bound
    times = _moment(value), _moment(bound)
    if times == (None, None):
        return value, bound
    if None in times:
        raise TypeError  # as text 2014-12-31T10:00 would come behind all of 2014-12-31 11:00 UTC
    return times


def _moment(value: Any) -> datetime | None:
    """A point in time, None of text that is none; what names no time zone is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    found = value if isinstance(value, datetime) else datetime.combine(value, time())
    return found if found.tzinfo else found.replace(tzinfo=UTC)
