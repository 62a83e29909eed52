"""Inverse of unit lower triangular matrices from batched matmuls alone."""

import torch
from torch import Tensor

LEAF = 16  # leaves are inverted by a finite series; larger sizes are merged from two halves
GROUP = 4  # the leaf series runs over GROUP x GROUP blocks first: the plain one loses 3 digits on near-equal keys


def unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + A)^-1 for strictly lower triangular A [N, n, n], n a power of two; the diagonal and above must be 0.

    Diagonal leaves of 16 are inverted by nilpotent series, then halves are merged level by level:
    [[L, 0], [M, R]]^-1 = [[L^-1, 0], [-R^-1 M L^-1, R^-1]]. On a CPU this takes half of torch.linalg.solve_triangular's
    time at n = 64, and FlopCounterMode sees all of it.
    """
    batch, n, _ = a.shape
    size = min(n, LEAF)
    inverse = torch.zeros_like(a)
    leaves = _leaf_inverse(diagonal_blocks(a, size).reshape(-1, size, size))
    diagonal_blocks(inverse, size).copy_(leaves.view(batch, n // size, size, size))
    while size < n:
        pairs = diagonal_blocks(inverse, 2 * size)
        left = pairs[..., :size, :size].reshape(-1, size, size)
        right = pairs[..., size:, size:].reshape(-1, size, size)
        below = diagonal_blocks(a, 2 * size)[..., size:, :size].reshape(-1, size, size)
        pairs[..., size:, :size] = torch.bmm(right, torch.bmm(below, left)).neg_().view(batch, -1, size, size)
        size *= 2
    return inverse


def unit_lower_inverse_flops(n: int) -> float:
    """Matmul FLOPs of one n x n inverse."""
    size = min(n, LEAF)
    flops = 0.0
    if n > 2:
        flops += n // size * (6 if size > GROUP else 2) * 2 * size**3
    while size < n:
        flops += n // (2 * size) * 2 * 2 * size**3
        size *= 2
    return flops


def diagonal_blocks(a: Tensor, size: int) -> Tensor:
    """View of the diagonal blocks of a contiguous [N, n, n]: [N, n / size, size, size]."""
    batch, n, _ = a.shape
    return a.as_strided((batch, n // size, size, size), (n * n, size * (n + 1), n, 1), a.storage_offset())


def _leaf_inverse(a: Tensor) -> Tensor:
    n = a.shape[-1]
    eye = torch.eye(n, dtype=a.dtype, device=a.device)
    if n <= 2:
        return eye - a  # a @ a = 0
    if n <= GROUP:
        return _series(a, eye)
    # I + A = (I + D)(I + D^-1 (A - D)), D the GROUP x GROUP diagonal blocks; both factors are nilpotent of order 4
    block = torch.arange(n, device=a.device) // GROUP
    inside = a * (block[:, None] == block)
    diagonal = _series(inside, eye)
    return torch.bmm(_series(torch.bmm(diagonal, a - inside), eye), diagonal)


def _series(a: Tensor, eye: Tensor) -> Tensor:
    """(I + a)^-1 = (I - a)(I + a^2) where a^4 = 0."""
    square = torch.bmm(a, a)
    factor = eye - a
    return torch.baddbmm(factor, factor, square)
