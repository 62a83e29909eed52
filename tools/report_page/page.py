"""`hybridlm report`: the page put together, section by section, from what the folders hold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import jinja2
from markupsafe import Markup

from ...lm.data.files import write_atomically
from .charts import COLOURS
from .collect import RunView, SweepView, collect

TEMPLATE = Path(__file__).parent / "page.html"


@dataclass(frozen=True)
class Cell:
    """One figure of a table with its standard error; `style` is a class of the page: best, text."""

    text: str
    error: str = ""
    style: str = ""


@dataclass
class Part:
    """Charts side by side, a table, or both. colours: of the columns that stand for runs, by column."""

    title: str = ""
    charts: list[Markup] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)
    run_columns: dict[int, int] = field(default_factory=dict)
    """{column: index of the run it stands for}: such a column carries the run's colour."""

    @property
    def colours(self) -> list[str]:
        return [
            COLOURS[self.run_columns[i] % len(COLOURS)] if i in self.run_columns else ""
            for i in range(len(self.header))
        ]


@dataclass
class Section:
    """A heading with its parts; left out of the page when there are none."""

    title: str
    parts: list[Part]
    note: str = ""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def write_page(folders: list[Path], target: Path) -> Path:
    """One HTML page over all `folders`, runs and sweeps, side by side; whole or not at all.

    Raises ConfigError for a folder that is neither or holds nothing yet.
    """
    from . import sections

    runs, sweeps = collect(folders)
    of_runs: tuple[Callable[[list[RunView]], Section], ...] = (
        sections.overview,
        sections.losses,
        sections.validation,
        sections.during_training,
        sections.benchmarks,
        sections.needles,
        sections.positions,
        sections.token_probes,
    )
    of_sweeps: tuple[Callable[[list[SweepView]], Section], ...] = (sections.recall,)
    built = [make(runs) for make in of_runs if runs] + [make(sweeps) for make in of_sweeps if sweeps]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=" and ".join(view.name for view in (*runs, *sweeps)) if len(folders) < 4 else f"{len(folders)} runs",
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=version("hybridlm"),
        sections=[section for section in built if section.parts],
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page.encode())
    return target
