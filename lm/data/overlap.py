"""Validation documents that are trained on: they make a validation loss look better than it is."""

from collections.abc import Iterator, Sequence

import numpy as np

from .packed import PackedDataset

CHUNK = 1 << 20
Named = tuple[str, PackedDataset]


def overlaps(train: Sequence[Named], valid: Sequence[Named]) -> Iterator[tuple[str, str, int, int]]:
    """(validation source, training source, documents of the former that are in the latter, its documents), where not 0.

    Documents are the same when their tokens are.
    """
    for held, dataset in valid:
        wanted = np.unique(dataset.doc_hashes)
        for trained, other in train:
            both = int(np.isin(dataset.doc_hashes, _met(wanted, other.doc_hashes)).sum())
            if both:
                yield held, trained, both, dataset.n_documents


def _met(wanted: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which of the sorted `wanted` are among `hashes`, [at most wanted]; a part of these at a time."""
    met = np.zeros(len(wanted), dtype=bool)
    for start in range(0, len(hashes), CHUNK):
        part = hashes[start : start + CHUNK]
        at = np.minimum(np.searchsorted(wanted, part), len(wanted) - 1)
        met[at[wanted[at] == part]] = True
    return wanted[met]
