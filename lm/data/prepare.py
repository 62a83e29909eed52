"""Everything a recipe's data needs, done once: tokenizer, packed training sources, packed validation sets."""

import heapq
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from ..parts.errors import ConfigError, DataError
from .corpus import content_key, documents
from .document import Document, digest
from .packed import PackedDataset
from .packing import FORMAT, is_packed, pack
from .tokenizer import Tokenizer, train_tokenizer

if TYPE_CHECKING:
    from ..recipe.data import DataConfig, SourceConfig
    from ..recipe.recipe import Recipe

LOCK_SECONDS = 3600.0


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, ready to train on. weights[i] is the share of the mixture that train[i] has; they sum to 1."""

    tokenizer: Tokenizer
    train: list[PackedDataset]
    weights: list[float]
    valid: dict[str, list[PackedDataset]]
    folder: Path


def prepare(recipe: "Recipe", *, quiet: bool = False) -> Prepared:
    """Fetch, train or load the tokenizer, and pack, below {data.cache}/prepared; what is there already is kept.

    Processes that call it at once wait for one of them to do the work. Raises ConfigError or DataError, one line each.
    """
    data = recipe.data
    folder = Path(data.cache).expanduser() / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / ".lock"), _progress(quiet) as task:
        tokenizer = _tokenizer(data, recipe.model.vocab_size, folder, task)
        train = [_packed(source, data, tokenizer, folder, task) for source in data.train]
        valid = {
            name: [_packed(source, data, tokenizer, folder, task) for source in sources]
            for name, sources in data.valid.items()
        }
    return Prepared(tokenizer, train, mixture_weights(data.train, [d.n_tokens for d in train]), valid, folder)


def mixture_weights(sources: "list[SourceConfig]", n_tokens: list[int]) -> list[float]:
    """Shares that sum to 1: the given weights, and what they leave in proportion to tokens.

    When every source has a weight they are normalised. Raises ConfigError when some are given and leave nothing.
    """
    given = sum(source.weight or 0.0 for source in sources)
    if all(source.weight is not None for source in sources):
        return [(source.weight or 0.0) / given for source in sources]
    if given >= 1:
        raise ConfigError(
            f"data.train: the weights given sum to {given:g} and leave nothing for the sources without one; "
            "give weights below 1 in sum, or one to every source"
        )
    rest = sum(n for n, source in zip(n_tokens, sources, strict=True) if source.weight is None)
    return [
        source.weight if source.weight is not None else (1 - given) * n / rest
        for n, source in zip(n_tokens, sources, strict=True)
    ]


def _packed(
    source: "SourceConfig", data: "DataConfig", tokenizer: Tokenizer, folder: Path, task: "Task"
) -> PackedDataset:
    fingerprint = digest(FORMAT, _source_key(source), tokenizer.fingerprint)
    target = folder / (re.sub(r"[^\w.-]+", "_", source.name) + f"-{fingerprint[:12]}")
    if not is_packed(target, fingerprint):
        advance = task(f"packing {source.name}")
        found = documents(source, data.cache)
        pack(found, tokenizer, target, fingerprint=fingerprint, workers=data.workers, advance=advance)
    return PackedDataset(target)


def _source_key(source: "SourceConfig") -> list[object]:
    """What a source's documents depend on; where its files lie and its share of the mixture do not matter."""
    return [source.model_dump(exclude={"weight", "path"}), content_key(source)]


def _tokenizer(data: "DataConfig", vocab_size: int, folder: Path, task: "Task") -> Tokenizer:
    if data.tokenizer.kind == "file":
        tokenizer = Tokenizer.load(str(data.tokenizer.path))
        if tokenizer.vocab_size > vocab_size:
            raise ConfigError(
                f"model.vocab_size={vocab_size}: {data.tokenizer.path} has {tokenizer.vocab_size} tokens; "
                f"set model.vocab_size={tokenizer.vocab_size} or more"
            )
        return tokenizer
    max_bytes = data.tokenizer.max_bytes
    key = digest(FORMAT, [_source_key(source) for source in data.train], max_bytes, vocab_size)
    target = folder / f"tokenizer-{key[:12]}"
    if not (target / "tokenizer.model").is_file():
        advance = task("reading text for the tokenizer")
        samples = [_sample(documents(source, data.cache), max_bytes, advance) for source in data.train]
        texts = spread(samples, max_bytes)
        task("training the tokenizer")
        train_tokenizer(texts, vocab_size).save(target)
    return Tokenizer.load(target)


def _sample(found: Iterator[Document], max_bytes: int, advance: Callable[[int], None]) -> list[str]:
    """Texts of a random sample of at least `max_bytes`, or all: the documents that come first by hash of their id."""
    kept: list[tuple[float, str, str]] = []  # heap, the largest hash on top
    size = 0
    for document in found:
        n_bytes = len(document.text.encode())
        advance(n_bytes)
        heapq.heappush(kept, (-document.position, document.id, document.text))
        size += n_bytes
        while size - (last := len(kept[0][2].encode())) >= max_bytes:
            heapq.heappop(kept)
            size -= last
    return [text for _, _, text in sorted(kept, reverse=True)]


def spread(samples: list[list[str]], max_bytes: int) -> Iterator[str]:
    """Texts of at most `max_bytes` in all, the same number from each sample as far as it goes; the last one is cut."""
    sizes = [sum(len(text.encode()) for text in texts) for texts in samples]
    left, quotas = max_bytes, {}
    for rank, index in enumerate(
        sorted(range(len(samples)), key=sizes.__getitem__)
    ):  # small samples leave more to others
        quotas[index] = min(sizes[index], left // (len(samples) - rank))
        left -= quotas[index]
    for index, texts in enumerate(samples):
        quota = quotas[index]
        for text in texts:
            raw = text.encode()[:quota]
            quota -= len(raw)
            if raw:
                yield raw.decode(errors="ignore")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file; the system frees it when its holder ends, however that ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise DataError(
            f"prepare: another process has held {path} for {LOCK_SECONDS:.0f} s; wait until it ends, then run "
            "`hybridlm prepare` by itself before training"
        ) from None
    try:
        yield
    finally:
        lock.release()


Task = Callable[[str], Callable[[int], None]]
"""Starts a line of progress and returns what advances it by bytes."""


@contextmanager
def _progress(quiet: bool) -> Iterator[Task]:
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:

        def task(description: str) -> Callable[[int], None]:
            line = progress.add_task(description, total=None)
            return lambda n_bytes: progress.update(line, advance=n_bytes)

        yield task
