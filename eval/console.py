"""Small things that verbs say."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..lm.parts.terminal import shown


@contextlib.contextmanager
def stage(console: Console, what: str) -> Iterator[None]:
    """Say what is being done and, when it is over, how long it took."""
    started = time.perf_counter()
    console.print(f"{what} ...", highlight=False, markup=False)
    yield
    console.print(f"{what}: {time.perf_counter() - started:.1f} s", highlight=False, markup=False)


def si(value: float) -> str:
    """Three significant digits with a decimal prefix: 341 M, 1.26 G."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E", "Z"))


def binary(n_bytes: float) -> str:
    """Three significant digits of bytes with a binary prefix: 96 KiB, 1.46 MiB."""
    return _scaled(n_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(value: float, base: int, prefixes: tuple[str, ...]) -> str:
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:  # what would be written with four digits
        value, power = value / base, power + 1
    digits = f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
    return f"{digits} {prefixes[power]}".rstrip()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table, the first column to the left and the others, which are numbers, to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(_in_a_row, line))} |\n" for line in lines)


def _in_a_row(cell: str) -> str:
    """A cell's text without what would end the cell or the row."""
    return " ".join(cell.split()).replace("|", "\\|")


def plain_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The same on a terminal, without lines between the columns."""
    table = Table(title=_as_it_is(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, column in enumerate(header):
        table.add_column(_as_it_is(column), justify="right" if i else "left", no_wrap=not i)  # a name is never cut off
    for row in rows:
        table.add_row(*map(_as_it_is, row))
    return table


def _as_it_is(cell: str) -> Text:
    """A cell on any console: brackets are no markup, and what a terminal would obey is written out."""
    return Text(shown(cell))
