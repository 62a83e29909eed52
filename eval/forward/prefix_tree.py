"""Which tokens requests have in common: a forest whose paths are their inputs, each shared beginning there once.

A recurrent state cannot be rewound, only copied. So a node is a run of tokens that is computed in one piece from its
parent's state, and it ends where the requests that go through it part. Copying a state has a price, in tokens: a
beginning becomes a node of its own only where that computes fewer tokens than the copies are worth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

FORK = 4  # tokens that could be computed while a state is copied and its short rest runs in a batch of its own
DEPTH = 5  # nodes on a path: few-shot examples, question, beginning of an answer, its end; and one in reserve


@dataclass
class Node:
    """`tokens` at positions start, start + 1, ... of every input in `members` that is long enough.

    members: indices of the inputs that lead through here or end here. children: what follows, with different tokens.
    """

    tokens: tuple[int, ...]
    start: int
    members: list[int]
    children: list["Node"] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


def separate(inputs: Sequence[tuple[int, ...]]) -> list[Node]:
    """A forest in which nothing is shared, for comparison: one node for each input."""
    return [Node(tokens, 0, [i]) for i, tokens in enumerate(inputs)]


def grow(inputs: Sequence[tuple[int, ...]]) -> list[Node]:
    """The forest of `inputs`: at most DEPTH nodes on a path, its order independent of theirs."""
    paths = _longest(inputs)
    roots: list[Node] = []
    todo = [(paths, 0, roots, 1)] if paths else []
    while todo:
        paths, start, siblings, depth = todo.pop()
        first, last = paths[0][0], paths[-1][0]
        fork = _common(first, last, start)  # of the first and the last in order is common to all
        branches = [list(branch) for _, branch in groupby(paths, _token_at(fork))]
        if len(branches) > 1 and (depth == DEPTH or not _pays(fork - start, len(branches))):
            todo += [(branch, start, siblings, depth) for branch in reversed(branches)]
            continue
        node = Node(first[start:fork], start, [i for _, members in paths for i in members])
        siblings.append(node)
        if len(branches) > 1:
            todo += [(branch, fork, node.children, depth + 1) for branch in reversed(branches)]
    return roots


def _pays(length: int, branches: int) -> bool:
    return length * (branches - 1) > FORK * branches


def _token_at(position: int) -> Callable[[tuple[tuple[int, ...], list[int]]], int | None]:
    return lambda path: path[0][position] if position < len(path[0]) else None


def _longest(inputs: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], list[int]]]:
    """Inputs in lexical order that begin no other one, each with the indices of those that it begins with or equals."""
    paths: list[tuple[tuple[int, ...], list[int]]] = []
    for i in sorted(range(len(inputs)), key=lambda i: (inputs[i], i)):
        tokens = inputs[i]
        if paths and tokens[: len(paths[-1][0])] == paths[-1][0]:
            paths[-1][1].append(i)
            paths[-1] = (tokens, paths[-1][1])
        else:
            paths.append((tokens, [i]))
    return paths


def _common(a: Sequence[int], b: Sequence[int], start: int) -> int:
    """Length of the common beginning of a and b, known to be at least `start`."""
    end = min(len(a), len(b))
    return next((i for i in range(start, end) if a[i] != b[i]), end)
