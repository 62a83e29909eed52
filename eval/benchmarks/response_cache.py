"""Finished requests of one model on disk, so that an evaluation that was interrupted goes on where it stopped."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from ...lm.model import HybridLM
from ...lm.parts.errors import DataError

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.recipe.model import BaseModelConfig

FORMAT = 1  # raise it when the same request on the same weights would be answered differently
LATER: dict[str, tuple[str, ...]] = {"moh": (), "band": (), "attention": ("heads", "mask")}
"""Mixers, or options of one that are null where they are not used, that came after the first fingerprints: without them
a model keeps the fingerprint, and so the answers, that it had."""
COMMIT_EVERY = 1.0  # seconds; what a crash can lose


def fingerprint(model: HybridLM, tokenizer: "Tokenizer", **options: Any) -> str:
    """SHA-256 of all that an answer depends on: weights with their dtypes, architecture, tokenizer, options, FORMAT."""
    digest = hashlib.sha256(f"{FORMAT} {tokenizer.prompt_fingerprint} {sorted(options.items())}".encode())
    digest.update(_architecture(model.config).encode())
    add_weights(digest, model)
    return digest.hexdigest()


def _architecture(config: "BaseModelConfig") -> str:
    """The model section as it was written before `LATER`, where nothing of that is used."""
    absent = LATER.keys() - {spec.mixer for spec in config.layer_specs()}
    left_out: dict[str, Any] = {name: True for name, options in LATER.items() if not options and name in absent}
    for name, options in LATER.items():
        section = config.mixer_options(name)
        unused = {option for option in options if getattr(section, option) is None}
        left_out |= {name: unused} if unused else {}
    return config.model_dump_json(exclude=left_out)


def add_weights(digest: "hashlib._Hash", module: torch.nn.Module) -> None:
    """Every tensor of a module's state: name, type, shape, and bytes unless it is on the meta device."""
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


class ResponseCache:
    """Answers by request, in {folder}/{fingerprint}.sqlite: another model reads another file. A context manager.

    A request is any JSON-like value, an answer too. Answers reach the disk within COMMIT_EVERY seconds, whole or not at
    all; several processes may share a file. Raises DataError when the file is damaged.
    """

    def __init__(self, folder: str | Path, fingerprint: str):
        self.path = Path(folder) / f"{fingerprint}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._unsaved, self._saved_at = dict[str, str](), time.monotonic()
        self._base = sqlite3.connect(self.path, timeout=60)
        try:
            self._base.execute("create table if not exists answers (request text primary key, answer text not null)")
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise DataError(f"response cache {str(self.path)!r}: {error}; delete the file") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self, requests: Iterable[Any]) -> dict[int, Any]:
        """Answers that are there, by the number of the request in `requests`."""
        found = {}
        for i, request in enumerate(requests):
            row = self._base.execute("select answer from answers where request = ?", (_key(request),)).fetchone()
            if row:
                found[i] = json.loads(row[0])
        return found

    def add(self, request: Any, answer: Any) -> None:
        """Keep an answer."""
        self._unsaved[_key(request)] = json.dumps(answer)
        if time.monotonic() - self._saved_at > COMMIT_EVERY:
            self._save()

    def close(self) -> None:
        """Write what is not on the disk yet."""
        self._save()
        self._base.close()

    def _save(self) -> None:
        with self._base:  # one transaction: all of it or nothing
            self._base.executemany("insert or replace into answers values (?, ?)", self._unsaved.items())
        self._unsaved, self._saved_at = {}, time.monotonic()


def _key(request: Any) -> str:
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()
