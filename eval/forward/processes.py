"""Work that is shared among the processes of a torch.distributed group, and whose results all of them get."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from ...lm.train.faults import together

R = TypeVar("R")


def share_out(order: Sequence[int], weights: Sequence[int], n: int) -> list[list[int]]:
    """`order` cut into n runs of about equal weight, so that neighbours stay together."""
    total, done = sum(weights[i] for i in order), 0
    runs: list[list[int]] = [[] for _ in range(n)]
    for i in order:
        runs[min(n - 1, done * n // max(total, 1))].append(i)
        done += weights[i]
    return runs


def in_parallel(
    order: Sequence[int], weights: Sequence[int], compute: Callable[[list[int]], dict[int, R]]
) -> dict[int, R]:
    """compute(indices) on a share of `order` in each process; the union of the results, in all of them.

    Every process calls this with the same arguments. An error in one is raised in all.
    """
    with together():
        mine = compute(share_out(order, weights, dist.get_world_size())[dist.get_rank()])
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return {i: result for results in gathered for i, result in results.items()}
