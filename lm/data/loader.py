"""Batches out of packed sources. The whole state of training's reading is one number: sequences consumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...kernels.shared.sequences import Sequences
from ..parts.errors import ConfigError
from .mixture import Mixture
from .packed import PackedDataset, mixture_fingerprint


@dataclass(frozen=True)
class Batch:
    """Rows of tokens end to end. Token t is a target unless it is the first of its segment; the model shifts labels.

    input_ids: [1, tokens], int64. sequences: the segments; a segment is the part of a document that lies in one row.
    """

    input_ids: torch.Tensor
    sequences: Sequences

    @property
    def n_targets(self) -> int:
        return self.sequences.tokens - len(self.sequences)


Row = tuple[PackedDataset, int, int]
"""A data set and the positions [start, stop) of a row in it."""


def make_batch(rows: Sequence[Row]) -> Batch:
    """The rows one behind the other; segments start at rows and at the documents within them."""
    tokens, starts, length = [], [], 0
    for dataset, start, stop in rows:
        tokens.append(dataset.tokens(start, stop))
        inside = dataset.doc_starts(start + 1, stop)
        starts.append(np.concatenate([[length], inside - start + length]))
        length += stop - start
    bounds = np.concatenate([*starts, [length]]).astype(np.int64)
    input_ids = torch.from_numpy(np.concatenate(tokens))[None]  # [1, tokens]
    return Batch(input_ids, Sequences(1, length, tuple(bounds.tolist())))


class Loader:
    """Training batches in an order that depends on the data, weights, seed and context alone, not on the world size.

    Row r of a source is its tokens [r * context, (r + 1) * context); what is left at its end is not used. A step takes
    the next `batch` sequences of the `Mixture`; rank i of W takes the i-th W-th of them, `micro_batch` at a time.
    Raises ConfigError when batch is no multiple of micro_batch * world_size, or a source has less than one row.
    """

    def __init__(
        self,
        datasets: Sequence[PackedDataset],
        weights: Sequence[float],
        *,
        context: int,
        batch: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch % (micro_batch * world_size):
            raise ConfigError(
                f"train.batch={batch}: not divisible by train.micro_batch={micro_batch} times {world_size} processes; "
                f"set train.batch to a multiple of {micro_batch * world_size} or lower train.micro_batch"
            )
        for dataset in datasets:
            if dataset.n_tokens < context:
                raise ConfigError(
                    f"model.context={context}: source {dataset.folder.name} has only {dataset.n_tokens} tokens, less "
                    "than one row; lower model.context or give more text"
                )
        self.datasets, self.context, self.batch, self.micro_batch = list(datasets), context, batch, micro_batch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.mixture = Mixture([dataset.n_tokens // context for dataset in datasets], weights, seed)
        self.fingerprint = mixture_fingerprint(datasets, weights)
        self.sequences = 0

    def next_step(self) -> list[Batch]:
        """This rank's micro-batches of one optimizer step: `micro_batch` rows each, no row on two ranks."""
        share = self.batch // self.world_size
        first = self.sequences + self.rank * share
        starts = range(first, first + share, self.micro_batch)
        batches = [make_batch([self._row(n) for n in range(start, start + self.micro_batch)]) for start in starts]
        self.sequences += self.batch
        return batches

    def _row(self, n: int) -> Row:
        source, row = self.mixture[n]
        return self.datasets[source], row * self.context, (row + 1) * self.context

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in; the same on every rank."""
        return {"sequences": self.sequences, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; batch, micro_batch and world size may differ.

        Raises ConfigError when it belongs to other data, weights, seed or context.
        """
        fixes = {
            "fingerprint": "train on the same data, weights and tokenizer",
            "seed": f"set seed={state['seed']}",
            "context": f"set model.context={state['context']}",
        }
        for key, value in self._identity().items():
            if state[key] != value:
                raise ConfigError(
                    f"resume: the checkpoint's data {key} is {state[key]}, this recipe's is {value}; {fixes[key]} "
                    "or start a new run"
                )
        self.sequences = int(state["sequences"])

    def _identity(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "seed": self.seed, "context": self.context}


def valid_batches(
    datasets: Sequence[PackedDataset], *, context: int, micro_batch: int, limit: int | None = None
) -> Iterator[Batch]:
    """Every token but the documents' first ones as a target exactly once, in order; `limit` bounds the micro-batches.

    Rows have context + 1 tokens and overlap by one: a row's last token is the next row's first, where it is no target.
    """
    rows: list[Row] = []
    given = 0
    for row in _valid_rows(datasets, context):
        rows.append(row)
        if len(rows) == micro_batch:
            yield make_batch(rows)
            rows, given = [], given + 1
            if given == limit:
                return
    if rows:
        yield make_batch(rows)


def _valid_rows(datasets: Sequence[PackedDataset], context: int) -> Iterator[Row]:
    for dataset in datasets:
        for start in range(0, dataset.n_tokens - 1, context):
            yield dataset, start, min(start + context + 1, dataset.n_tokens)
