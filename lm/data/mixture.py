"""Which row of which source the n-th training sequence is: a pure function of n, the seed, the weights and the rows."""

from collections.abc import Sequence

import numpy as np

BLOCK = 1024


class Mixture:
    """A deterministic endless order over the rows of weighted sources.

    Sequences come in blocks of 1024. Source k owes each block weight_k * 1024 rows; whole rows are dealt and fractions
    carried over, so after any number of blocks every source is within a row of its exact share. Within a block the
    sources are shuffled; each source goes through all its rows in a new order per epoch.
    """

    def __init__(self, n_rows: Sequence[int], weights: Sequence[float], seed: int):
        self.n_rows, self.seed = list(n_rows), seed
        self.weights = np.asarray(weights, dtype=np.float64)
        self._dealt = [np.zeros(len(n_rows), dtype=np.int64)]  # rows of each source before block 0, 1, ...
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, n: int) -> tuple[int, int]:
        """(source, row) of sequence n."""
        sources, ordinals = self._block(n // BLOCK)
        source = int(sources[n % BLOCK])
        epoch, place = divmod(int(ordinals[n % BLOCK]), self.n_rows[source])
        return source, int(self._order(source, epoch)[place])

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each sequence of a block: its source [1024], and how many of that source came before it [1024]."""
        if block not in self._blocks:
            before, after = self._dealt_before(block), self._dealt_before(block + 1)
            sources = np.repeat(np.arange(len(self.n_rows)), after - before)
            np.random.default_rng([self.seed, block]).shuffle(sources)
            ordinals = np.empty(BLOCK, dtype=np.int64)
            for source in range(len(self.n_rows)):
                mine = sources == source
                ordinals[mine] = before[source] + np.arange(mine.sum())
            _keep_two(self._blocks, block, (sources, ordinals))
        return self._blocks[block]

    def _dealt_before(self, block: int) -> np.ndarray:
        """Rows of each source that the blocks before `block` hold, [sources]."""
        while len(self._dealt) <= block:
            done = len(self._dealt)
            owed = self.weights * (BLOCK * done) - self._dealt[-1]
            quota = np.maximum(np.floor(owed), 0).astype(np.int64)
            largest_first = np.argsort(-(owed - quota), kind="stable")
            quota[largest_first[: BLOCK - int(quota.sum())]] += 1
            self._dealt.append(self._dealt[-1] + quota)
        return self._dealt[block]

    def _order(self, source: int, epoch: int) -> np.ndarray:
        """The rows of a source in their order of an epoch, [n_rows]."""
        if (source, epoch) not in self._orders:
            self._orders.pop((source, epoch - 2), None)  # the previous epoch may still be asked for within a step
            generator = np.random.default_rng([self.seed, source, epoch])
            self._orders[source, epoch] = generator.permutation(self.n_rows[source])
        return self._orders[source, epoch]


def _keep_two(cache: dict, key: int, value: object) -> None:
    """Keep the newest two entries: a step may lie across a boundary."""
    if len(cache) >= 2:
        cache.pop(next(iter(cache)))
    cache[key] = value
