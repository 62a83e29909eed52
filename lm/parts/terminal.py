"""Text of models, data and file names on a terminal: shown, never obeyed."""

import re
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

# C0 and C1 but for tab and newline, what turns the direction of text, and halves of surrogate pairs
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""`text` with the characters that a terminal would obey written out: \x1b, \u202e."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write(text: str, file: TextIO) -> None:
    """Write a piece of text at once: as it is into a file or a pipe, `shown` on a terminal."""
    file.write(shown(text) if file.isatty() else text)
    file.flush()


class PlainConsole(Console):
    """rich's console, but text is text: brackets are no markup, :names: no emoji, and a terminal gets it `shown`.

    What is to be coloured comes as rich's Text.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text) if self.is_terminal else text, **options)
