"""What a page shows of each folder: a training run's records and evaluations, or a sweep's results."""

import json
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...lm.data.files import read_records
from ...lm.parts.errors import ConfigError, DataError
from ...lm.recipe.layers import describe
from ...lm.run import Run, checkpoint_steps
from ..records import rate

SWEEP_FILE = "results.jsonl"


@dataclass
class RunView:
    """A training run as it stands: its recipe, what it logged, and the evaluations of its newest scored checkpoint."""

    name: str
    run: Run
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By kind (tasks, needles, positions), the content of RUN/eval/{checkpoint}/{kind}.json."""

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        return self.run.metrics()

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The logged records of one kind: train, valid or eval, of any set or hook."""
        return [record for record in self.records if record["kind"].partition("/")[0] == kind]

    def series(self, kind: str) -> dict[str, list[tuple[int, float]]]:
        """{name: [(step, value)]} of what validation or in-loop evaluation measured."""
        series: dict[str, list[tuple[int, float]]] = {}
        for record in self.of_kind(kind):
            for key, value in record.items():
                if key not in ("kind", "step", "time"):
                    series.setdefault(key, []).append((record["step"], value))
        return series

    def facts(self) -> dict[str, str]:
        """The run's line in the overview."""
        recipe, steps = self.run.recipe, self.of_kind("train")
        last = steps[-1]["step"] if steps else None  # weights that came from elsewhere
        tail = steps[-20:]
        return {
            "layers": describe(recipe.model.layer_specs()),
            "width": str(recipe.model.d_model),
            "context": f"{recipe.model.context:,}",
            "steps": "-" if last is None else f"{last:,} of {recipe.train.steps:,}",
            "tokens": "-" if last is None else f"{steps[-1]['tokens'] / 1e6:,.1f} M",
            "train loss": f"{sum(r['loss'] for r in tail) / len(tail):.3f}" if tail else "-",
            "tokens/s": f"{rate(steps):,.0f}" if steps else "-",
            "code": _read(self.run.folder / "code.json").get("git", "-") if self._has_code else "-",
        }

    @property
    def _has_code(self) -> bool:
        return (self.run.folder / "code.json").is_file()


@dataclass
class SweepView:
    """A sweep over small models: one result per finished run of its grid."""

    name: str
    results: list[dict[str, Any]]


def collect(folders: list[Path]) -> tuple[list[RunView], list[SweepView]]:
    """Runs and sweeps, named by their folders, by as many parents as tell them apart.

    Raises ConfigError for a folder that is neither, or that has nothing to show yet.
    """
    runs, sweeps = [], []
    for folder, name in zip(folders, _names(folders), strict=True):
        if (folder / SWEEP_FILE).is_file():
            sweeps.append(SweepView(name, read_records(folder / SWEEP_FILE)))
        else:
            runs.append(_run_view(folder, name))
    return runs, sweeps


def _run_view(folder: Path, name: str) -> RunView:
    view = RunView(name, Run(folder), _newest_evaluations(folder / "eval"))
    if not (view.of_kind("train") or view.evaluations):
        command = shlex.join(["hybridlm", "train", str(folder)])
        raise ConfigError(f"run {str(folder)!r}: nothing logged yet; train it first: {command}")
    return view


def _newest_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The latest checkpoint's file of each kind."""
    found = {}
    steps = checkpoint_steps(folder)
    for step in sorted(steps):  # later ones replace
        for path in sorted(steps[step].glob("*.json")):
            content = _read(path)
            if "kind" not in content:
                raise DataError(f"{path}: no result of an evaluation; move it away")
            found[content["kind"]] = content
    return found


def _read(path: Path) -> dict[str, Any]:
    """A file of one JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a whole file of JSON; move it away")
    return content


def _names(folders: list[Path]) -> list[str]:
    """The last part of each path, or as many as make them differ."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("report: the same folder is given twice; name each once")
