"""Weighted draws without replacement by integer arithmetic alone: the same on every machine."""

from decimal import Decimal
from functools import cache

import numpy as np

BLOCK = 4096  # rows drawn together, to bound the memory of their trees


@cache
def slot_weights(n_slots: int, power_a: float) -> tuple[int, ...]:
    """(i + 1)^(power_a - 1) for i < n_slots, the largest 2^32, rounded to integers of at least 1.

    Decimal arithmetic is done in integers: no digit depends on the machine's floating-point library.
    """
    weights = [Decimal(i + 1) ** (Decimal(str(power_a)) - 1) for i in range(n_slots)]
    largest = max(weights)
    return tuple(max(1, int(weight / largest * 2**32)) for weight in weights)


def draw_slots(rng: np.random.Generator, weights: tuple[int, ...], n: int, size: int) -> np.ndarray:
    """[n, size]: `size` different indices per row, one after the other, with odds in proportion to what weights remain.

    Each draw is an integer below the sum of the weights left, followed down a binary tree of partial sums, from which
    the drawn weight is then taken: exact, with no logarithm whose last digit could differ between machines.
    """
    blocks = [_draw_block(rng, weights, min(BLOCK, n - start), size) for start in range(0, n, BLOCK)]
    return np.concatenate(blocks or [np.empty((0, size), dtype=np.int64)])


def _draw_block(rng: np.random.Generator, weights: tuple[int, ...], n: int, size: int) -> np.ndarray:
    n_leaves = 1 << max(1, (len(weights) - 1).bit_length())
    sums = np.zeros(2 * n_leaves, dtype=np.int64)  # node i is the sum of nodes 2i and 2i + 1, the root is 1
    sums[n_leaves : n_leaves + len(weights)] = weights
    for node in reversed(range(1, n_leaves)):
        sums[node] = sums[2 * node] + sums[2 * node + 1]
    tree = np.tile(sums, (n, 1)).ravel()
    start = np.arange(n) * len(sums)
    drawn = np.empty((n, size), dtype=np.int64)
    for j in range(size):
        rest = rng.integers(0, tree[start + 1])
        path = [np.ones(n, dtype=np.int64)]
        while len(path) < n_leaves.bit_length():
            left = tree[start + 2 * path[-1]]
            right = rest >= left
            rest = rest - left * right
            path.append(2 * path[-1] + right)
        weight = tree[start + path[-1]]
        for node in path:
            tree[start + node] -= weight
        drawn[:, j] = path[-1] - n_leaves
    return drawn
