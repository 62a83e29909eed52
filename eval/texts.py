"""Long texts by name."""

from pathlib import Path

from ..lm.data.registered.sources import SOURCES, fetch_command, read
from ..lm.parts.errors import ConfigError, DataError
from ..lm.parts.strict import nearest


def read_text(name: str, cache: str | Path) -> str:
    """A UTF-8 text file, or all documents of a registered source such as mobydick, fetched first when needed.

    Raises ConfigError when there is neither, DataError when it cannot be fetched or is no UTF-8 text.
    """
    if name in SOURCES:
        try:
            return "\n\n".join(document.text for document in read(name, cache))
        except DataError as error:
            raise DataError(
                f"text {name!r}: {error}; give a text file instead, or with a network run: {fetch_command(name, cache)}"
            ) from None
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ConfigError(f"text {name!r}: {what} and no source of that name; {nearest(name, SOURCES)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"text {name!r}: not UTF-8; convert it first") from None
