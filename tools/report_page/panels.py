"""What a page is made of: sections of panels, each a table, charts, or both."""

from dataclasses import dataclass, field

from markupsafe import Markup

from .charts import COLOURS


@dataclass(frozen=True)
class TableCell:
    """One figure of a table with its standard error; `style` is a class of the page: best, text."""

    text: str
    error: str = ""
    style: str = ""


@dataclass
class Panel:
    """Charts side by side, a table, or both. colours: of the columns that stand for runs, by column."""

    title: str = ""
    charts: list[Markup] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[TableCell]] = field(default_factory=list)
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
    """A heading with its panels; left out of the page when there are none."""

    title: str
    panels: list[Panel]
    note: str = ""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")
