"""Two runs that are to understand each other have one tokenizer."""

import json
import shlex

from ..data.tokenizer import Tokenizer
from ..parts.errors import ConfigError
from ..run import Run


def check_same_vocabulary(other: Run, mine: Tokenizer, field: str) -> None:
    """Raises ConfigError unless the other run has this tokenizer, byte for byte, wherever its files are."""
    if other.tokenizer().fingerprint != mine.fingerprint:
        theirs = json.dumps(str(other.folder / "tokenizer"), ensure_ascii=False)
        raise ConfigError(
            f"{field}: {str(other.folder)!r} has another tokenizer than this recipe's data; take that one with "
            + shlex.quote(f"data.tokenizer={{kind: file, path: {theirs}}}")
        )
