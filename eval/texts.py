"""Long texts by name, and their tokens piece by piece."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..lm.data.registered.sources import SOURCES, fetch_command, read
from ..lm.parts.errors import ConfigError, DataError
from ..lm.parts.strict import nearest

if TYPE_CHECKING:
    from ..lm.data.tokenizer import Tokenizer

ANCHOR = "a"


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
        raise ConfigError(f"text {name!r}: no such file and no source of that name; {nearest(name, SOURCES)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"text {name!r}: not UTF-8; convert it first") from None


def encode_pieces(tokenizer: "Tokenizer", pieces: Sequence[str]) -> list[list[int]]:
    """Tokens of each piece as it reads in the middle of a text, so that joined tokens give the joined pieces.

    Each is encoded behind a letter whose tokens are then dropped: some tokenizers put a space in front of a text. A
    piece whose first token would swallow that letter is encoded by itself.
    """
    before = tokenizer.encode(ANCHOR)
    joined = tokenizer.encode_batch([ANCHOR + piece for piece in pieces])
    behind = [ids[len(before) :] if ids[: len(before)] == before else None for ids in joined]
    return [tokenizer.encode(piece) if ids is None else ids for piece, ids in zip(pieces, behind, strict=True)]
