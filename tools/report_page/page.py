"""`hybridlm report`: the page put together, section by section, from what the folders hold."""

from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import jinja2

from ...lm.data.files import write_atomically
from . import sections
from .collect import RunView, SweepView, collect
from .panels import Section
from .routing import routed_heads

TEMPLATE = Path(__file__).parent / "page.html"


def write_page(folders: list[Path], target: Path) -> Path:
    """One HTML page over all `folders`, runs and sweeps, side by side; whole or not at all.

    Raises ConfigError for a folder that is neither or holds nothing yet.
    """
    runs, sweeps = collect(folders)
    of_runs: tuple[Callable[[list[RunView]], Section], ...] = (
        sections.overview,
        sections.losses,
        sections.validation,
        sections.during_training,
        routed_heads,
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
        sections=[section for section in built if section.panels],
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page.encode())
    return target
