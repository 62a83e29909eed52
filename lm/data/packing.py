"""Documents -> memory-mapped token shards. Every document is [bos] + ids + [eos].

A pack is a folder: `shard-00000.bin` and so on hold the tokens, `documents.npy` [documents, 2] each document's tokens
and UTF-8 bytes, `hashes.npy` a hash of its tokens, `index.json` the rest. The index is written last and makes the pack
complete. Until then each finished shard has its own `.npy` beside it, and an interrupted packing goes on behind the
finished ones.
"""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np

from ..parts.errors import DataError
from .document import Document
from .files import atomic, write_atomically
from .packed import HASHES, INDEX, PackedDataset, document_hashes, token_dtype
from .tokenizer import Tokenizer

__all__ = ["FORMAT", "PackedDataset", "is_packed", "pack", "write_shard"]

FORMAT = 1  # raise it when packs of the same fingerprint would differ, in layout or in how sources are cleaned


def is_packed(folder: Path, fingerprint: str) -> bool:
    """Whether `folder` holds the complete pack with this fingerprint."""
    index = folder / INDEX
    return index.is_file() and json.loads(index.read_text())["fingerprint"] == fingerprint


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    fingerprint: str,
    workers: int = 1,
    advance: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Tokenize `documents` into `folder` with `workers` processes; `advance` is told the bytes of text when done.

    `fingerprint` names everything the tokens depend on: nothing is done when a complete pack carries it, and finished
    shards of an interrupted packing with the same fingerprint are kept. Raises DataError when a worker process dies.
    """
    if is_packed(folder, fingerprint):
        return
    _start(folder, fingerprint)
    shards: list[Path] = []

    def jobs() -> Iterator[tuple[list[str], Path]]:
        for texts in _split(documents):
            shards.append(folder / f"shard-{len(shards):05d}.bin")
            yield texts, shards[-1]

    _run(jobs(), partial(write_shard, tokenizer), workers, advance)
    _finish(folder, shards, tokenizer, fingerprint)


def write_shard(tokenizer: Tokenizer, texts: list[str], path: Path) -> int:
    """Tokenize `texts` into the shard `path` unless that is done; returns their UTF-8 bytes."""
    n_bytes = [len(text.encode()) for text in texts]
    dtype = token_dtype(tokenizer.vocab_size)
    if _is_done(path, dtype):
        return sum(n_bytes)
    documents = tokenizer.encode_documents(texts)
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in documents])
    if tokens.max() >= tokenizer.vocab_size:
        raise DataError(
            f"tokenizer: gave id {tokens.max()}, but declares {tokenizer.vocab_size} tokens; replace its damaged file"
        )
    tokens, lengths = tokens.astype(dtype), np.array([len(ids) for ids in documents], dtype=np.int64)
    write_atomically(path, tokens.tobytes())
    hashes = document_hashes(tokens, lengths).view(np.int64)
    with atomic(path.with_suffix(".npy")) as file:
        np.save(file, np.array([lengths, n_bytes, hashes], dtype=np.int64).T)
    return sum(n_bytes)


def shard_bytes(index: int) -> int:
    """Bytes of text a shard is closed at: small first, so that a small corpus occupies all workers, then larger."""
    return (2 << 20) << min(index // 8, 5)


def _split(documents: Iterable[Document]) -> Iterator[list[str]]:
    texts: list[str] = []
    index = size = 0
    for document in documents:
        texts.append(document.text)
        size += len(document.text)  # characters: close enough, and free
        if size >= shard_bytes(index):
            yield texts
            texts, size, index = [], 0, index + 1
    if texts:
        yield texts


def _start(folder: Path, fingerprint: str) -> None:
    """Make `folder` hold shards of this fingerprint alone."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "fingerprint"
    if not mark.is_file() or mark.read_text() != fingerprint:
        for old in (folder / INDEX, folder / HASHES, *folder.glob("shard-*")):
            old.unlink(missing_ok=True)
        write_atomically(mark, fingerprint.encode())
    for leftover in folder.glob(".*-*"):
        leftover.unlink(missing_ok=True)  # half a file of a process that was killed


def _is_done(path: Path, dtype: np.dtype) -> bool:
    documents = path.with_suffix(".npy")
    if not (path.is_file() and documents.is_file()):
        return False
    found = np.load(documents)
    return found.shape[1] == 3 and path.stat().st_size == int(found[:, 0].sum()) * dtype.itemsize


def _run(
    jobs: Iterator[tuple[list[str], Path]], write: Callable[..., int], workers: int, advance: Callable[[int], None]
) -> None:
    """Do the jobs in this process or in `workers` others, with no more than two jobs per worker in memory."""
    if workers == 1:
        for job in jobs:
            advance(write(*job))
        return
    # forked where that exists: a spawned worker would run the caller's script again
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_end_with_parent)
    running: set[Future[int]] = set()
    try:
        for job in jobs:
            running.add(pool.submit(write, *job))
            if len(running) >= 2 * workers:
                running = _collect(running, advance)
        while running:
            running = _collect(running, advance)
    except BrokenProcessPool:
        raise DataError(
            "prepare: a worker process was killed, most often for lack of memory; lower data.workers and run it again, "
            "finished shards are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Make a worker end when its parent is killed: it would wait forever, and keep the lock that a fork inherits."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _collect(running: set[Future[int]], advance: Callable[[int], None]) -> set[Future[int]]:
    done, running = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        advance(future.result())
    return running


def _finish(folder: Path, shards: list[Path], tokenizer: Tokenizer, fingerprint: str) -> None:
    documents = [np.load(shard.with_suffix(".npy")) for shard in shards]  # [documents, 3]: tokens, bytes, hash
    with atomic(folder / "documents.npy") as file:
        np.save(file, np.concatenate([part[:, :2] for part in documents]))
    with atomic(folder / HASHES) as file:
        np.save(file, np.concatenate([part[:, 2] for part in documents]).view(np.uint64))
    index = {
        "fingerprint": fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "shards": {shard.name: int(part[:, 0].sum()) for shard, part in zip(shards, documents, strict=True)},
    }
    write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())
    for shard in shards:
        shard.with_suffix(".npy").unlink()
