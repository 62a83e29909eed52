"""Ranges of the numbers and texts that recipes are made of. Wide: what lies outside trains into nonsense or nothing."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from .errors import brief

MOST = 10**9
"""Steps, sequences, tokens, examples: of whatever is counted."""
WIDEST = 1 << 20
"""Channels, heads, tokens of a convolution: of whatever memory is laid out by."""
LONGEST = 1 << 24
"""Tokens of a sequence, entries of a vocabulary."""
DEEPEST = 512
"""Layers of a model."""

Beta = Annotated[float, Field(ge=0, lt=1)]
"""Rate at which AdamW's moments forget."""
Epsilon = Annotated[float, Field(ge=1e-12, le=1)]
"""What a norm adds to a mean square: float32 holds it, and all-zero activations stay zero."""
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[int, Field(ge=1, le=DEEPEST)]
"""Layers of one kind in a period."""


def _named(name: str) -> str:
    odd = sorted({x for x in name if not (x.isalnum() or x in "_-+. ")})
    if odd or not name or name[0] in "-. " or name[-1] in ". " or len(name.encode()) > 120:
        raise ValueError(
            f"{brief(name)} is no name; it is used for files and in logs: give letters, digits, _ - + . and spaces, "
            "at most 120 bytes, beginning with a letter, digit, _ or +, and ending with none of . and space"
        )
    return name


Name = Annotated[str, AfterValidator(_named)]
"""What a file, a folder or a tag is called after."""


def each_once(values: Any) -> Any:
    """As given. Raises ValueError for a list that has a value twice: what is measured twice would count as more."""
    for value in values if isinstance(values, list) else ():
        if values.count(value) > 1:
            raise ValueError(f"{brief(value)} is there twice; give it once")
    return values


def _path(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty path; give a file or a folder")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{brief(text)}: nobody has that home folder; write the path out") from None
    return text


PathText = Annotated[str, AfterValidator(_path)]
"""A file, a folder or a glob, `~` included."""
