"""RUN/origins.json: where a run's first weights came from, and which checkpoint teaches it."""

import json
from pathlib import Path
from typing import Any

import yaml

from ..data.files import write_atomically
from ..parts.errors import ConfigError
from ..run import Run

FILE = "origins.json"


def read_origins(run: Run) -> dict[str, Any]:
    """What the folder says, {} where there is nothing to say. Raises ConfigError for a file that is not whole."""
    path = run.folder / FILE
    return read_mapping(path, "where the run came from") if path.is_file() else {}


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """What a file of YAML, of which JSON is a part, says: `what`. Raises ConfigError for one that is not whole."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: does not say {what}; restore it, or move it away")
    return found


def keep_origins(run: Run, origins: dict[str, Any]) -> None:
    """Write what is new beside what is there."""
    if origins:
        merged = {**read_origins(run), **origins}
        write_atomically(run.folder / FILE, json.dumps(merged, indent=1).encode())
