"""Every benchmark by name: what it asks, where its questions come from, and the lm-eval task it becomes."""

import difflib
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from lm_eval.api.task import ConfigurableTask

from ...lm.parts.errors import ConfigError, DataError
from ..recall.entries import ENTRIES as RECALL
from ..tasks.entry import Entry, Options
from ..tasks.stock import ENTRIES as STOCK
from ..tasks.stock import MMLU
from ..text_probes.entries import ENTRIES as PROBES

__all__ = ["CATALOGUE", "GROUPS", "Entry", "Options", "build", "content_hash", "expand", "unknown"]

CATALOGUE: dict[str, Entry] = {**STOCK, **MMLU, **RECALL, **PROBES}
GROUPS: dict[str, tuple[str, ...]] = {"mmlu": tuple(MMLU)}
"""Names that stand for many tasks and for their mean over all questions."""


def expand(names: Iterable[str]) -> list[str]:
    """The tasks that `names` stand for, each once. Raises ConfigError for an unknown name, giving the nearest ones."""
    tasks: dict[str, None] = {}
    for name in names:
        if name not in CATALOGUE and name not in GROUPS:
            raise unknown("task", name, [*CATALOGUE, *GROUPS])
        tasks.update(dict.fromkeys(GROUPS.get(name, (name,))))
    if not tasks:
        raise ConfigError(f"tasks: none given; there are: {_listed([*CATALOGUE, *GROUPS])}")
    return list(tasks)


def unknown(kind: str, name: str, names: list[str]) -> ConfigError:
    """The error for a name that is not one of `names`, with those that are spelled most like it."""
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return ConfigError(f"{kind} {name!r}: unknown; {hint}{kind}s: {_listed(names)}")


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(name for name in names if name not in MMLU))


def build(names: Iterable[str], options: Options) -> dict[str, ConfigurableTask]:
    """The lm-eval tasks that `names` stand for. Raises ConfigError for an unknown name, DataError for missing files."""
    if options.num_fewshot < 0:
        raise ConfigError(f"num_fewshot: {options.num_fewshot} is below 0; use 0 for no solved questions")
    return {name: _build(name, options) for name in expand(names)}


def _build(name: str, options: Options) -> ConfigurableTask:
    try:
        return CATALOGUE[name].build(name, options)
    except DataError as error:
        raise DataError(f"task {name!r}: {error}") from None


def content_hash(task: Any) -> str:
    """SHA-256 over all that a task asks and how it scores: its configuration and every question."""
    digest = hashlib.sha256()
    config = task.dump_config()
    for key in sorted(config.keys() - {"custom_dataset"}):
        digest.update(f"{key}={json.dumps(config[key], sort_keys=True, default=_name)}\n".encode())
    for question in task.eval_docs:
        digest.update(json.dumps(question, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _name(value: Any) -> str:
    """A function by its name: how Python prints one differs from run to run."""
    return getattr(value, "__qualname__", None) or str(value)
