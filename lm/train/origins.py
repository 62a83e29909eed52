"""RUN/origins.json: where a run's first weights came from, and which checkpoint teaches it."""

import json
from typing import Any

from ..data.files import write_atomically
from ..parts.errors import ConfigError
from ..run import Run

FILE = "origins.json"


def read_origins(run: Run) -> dict[str, Any]:
    """What the folder says, {} where there is nothing to say. Raises ConfigError for a file that is not whole."""
    path = run.folder / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: does not say where the run came from; restore it, or move it away")
    return found


def keep_origins(run: Run, origins: dict[str, Any]) -> None:
    """Write what is new beside what is there."""
    if origins:
        merged = {**read_origins(run), **origins}
        write_atomically(run.folder / FILE, json.dumps(merged, indent=1).encode())
