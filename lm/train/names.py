"""Parameters of a model by name and glob."""

import difflib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from ..parts.errors import ConfigError, brief


def matching(patterns: Iterable[str], names: Collection[str], field: str) -> set[str]:
    """The names that a glob fits. Raises ConfigError that names the nearest one for a glob that fits none."""
    found: set[str] = set()
    for pattern in patterns:
        fits = {name for name in names if fnmatchcase(name, pattern)}
        if not fits:
            near = difflib.get_close_matches(pattern[:100], names, n=1, cutoff=0.0)
            raise ConfigError(f"{field}: {brief(pattern)} fits no parameter; the nearest is {near[0]!r}")
        found |= fits
    return found
