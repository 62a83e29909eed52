"""Reading a pack: tokens by position across shards, documents by offset."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..parts.errors import DataError
from .document import digest

INDEX, HASHES = "index.json", "hashes.npy"


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest type that holds the ids 0 ... vocab_size - 1: uint16 up to 65536 tokens, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def document_hashes(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A hash of each document's tokens, uint64 [documents]: equal for equal texts under one tokenizer."""
    ends = np.cumsum(lengths)
    parts = (tokens[end - length : end].tobytes() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True))
    return np.frombuffer(b"".join(hashlib.blake2b(part, digest_size=8).digest() for part in parts), dtype="<u8")


class PackedDataset:
    """One packed source as a single stream of tokens.

    n_tokens counts bos and eos; n_bytes is the UTF-8 text alone; doc_offsets [n_documents + 1] are the positions of the
    documents' bos tokens, and n_tokens. Raises DataError when a shard is missing or truncated.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise DataError(f"pack {self.folder}: not complete (no {INDEX}); run `hybridlm prepare` again")
        index = json.loads((self.folder / INDEX).read_text())
        self.fingerprint: str = index["fingerprint"]
        self.vocab_size: int = index["vocab_size"]
        self.dtype = np.dtype(index["dtype"])
        if self.vocab_size > np.iinfo(self.dtype).max + 1:
            raise DataError(
                f"pack {self.folder}: {self.vocab_size} tokens do not fit its {self.dtype} shards; "
                f"{_again(self.folder)}"
            )
        self._shards = [self.folder / name for name in index["shards"]]
        sizes = np.array(list(index["shards"].values()), dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])  # [shards + 1]
        self.n_tokens = int(self._starts[-1])
        for shard, size in zip(self._shards, sizes.tolist(), strict=True):
            _check(shard, size * self.dtype.itemsize)
        documents = np.load(self.folder / "documents.npy")  # [documents, 2]: tokens, bytes
        self.n_documents = len(documents)
        self.n_bytes = int(documents[:, 1].sum())

    @cached_property
    def doc_offsets(self) -> np.ndarray:
        """Where documents start, int64 [n_documents + 1]; the last entry is n_tokens."""
        return np.concatenate([[0], np.cumsum(np.load(self.folder / "documents.npy")[:, 0])])

    @cached_property
    def doc_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each document's text, int64 [n_documents]."""
        return np.load(self.folder / "documents.npy")[:, 1]

    @cached_property
    def doc_hashes(self) -> np.ndarray:
        """`document_hashes` of the whole pack; formed anew for a pack that was made before they were kept."""
        if (self.folder / HASHES).is_file():
            return np.load(self.folder / HASHES)
        lengths, first, parts = np.diff(self.doc_offsets), 0, []
        for shard, end in zip(self._shards, self._starts[1:], strict=True):
            last = int(np.searchsorted(self.doc_offsets, end))  # documents do not cross shards
            parts.append(document_hashes(np.memmap(shard, self.dtype, "r"), lengths[first:last]))
            first = last
        return np.concatenate(parts)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens of positions start ... stop - 1 as int64 [stop - start]; raises IndexError outside the stream."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} ... {stop} of a pack with {self.n_tokens}")
        out = np.empty(stop - start, dtype=np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            first, end = int(self._starts[shard]), int(min(self._starts[shard + 1], stop))
            # mapped anew each time: microseconds, and no open file per shard of a large corpus
            out[at - start : end - start] = np.memmap(self._shards[shard], self.dtype, "r")[at - first : end - first]
            at, shard = end, shard + 1
        return out

    def doc_starts(self, start: int, stop: int) -> np.ndarray:
        """Positions of the documents' first tokens that lie in [start, stop)."""
        first, last = np.searchsorted(self.doc_offsets[:-1], [start, stop])
        return self.doc_offsets[first:last]


def _again(folder: Path) -> str:
    return f"delete {folder} and run `hybridlm prepare` again"


def _check(shard: Path, n_bytes: int) -> None:
    fix = _again(shard.parent)
    if not shard.is_file():
        raise DataError(f"pack {shard.parent}: {shard.name} is missing; {fix}")
    found = shard.stat().st_size
    if found != n_bytes:
        raise DataError(f"pack {shard.parent}: {shard.name} has {found} bytes instead of {n_bytes}; {fix}")


def mixture_fingerprint(datasets: Sequence[PackedDataset], weights: Sequence[float]) -> str:
    """What a loader's position is a position in: the packs and their shares. Checkpoints keep it."""
    return digest([dataset.fingerprint for dataset in datasets], [float(weight) for weight in weights])
