"""Scores and gradients of gated linear attention within chunks, for a decay per head and for one per key channel.

With G the running sum of g, the score of token j at token i is P_ij = sum_k q_ik k_jk exp(G_ik - G_jk), i >= j. Both
classes give it, what it means for q, k and g, and the decays from the chunk's start and to its end.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..shared.chunking import MIN_LOG_DECAY, head_decay, head_decay_grad
from ..shared.triangular import diagonal_blocks


class HeadDecays:
    """g: [R, C]; P = (Q K^T) * D with the matrix D of decays between tokens."""

    def __init__(self, q: Tensor, k: Tensor, g: Tensor) -> None:
        self.q, self.k = q, k  # [R, C, K]
        self.between, self.since, self.until = head_decay(g, q.dtype)

    def scores(self) -> Tensor:
        return torch.bmm(self.q, self.k.mT).mul_(self.between).tril_()

    def scores_backward(self, dp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From P's gradient, lower triangular: P and what it gives dq and dk."""
        p = self.scores()
        self.pairs = (p * dp).tril_(-1)
        dp = dp.mul_(self.between)
        return p, torch.bmm(dp, self.k), torch.bmm(dp.mT, self.q)

    def gate_grad(self, since: Tensor, until: Tensor, chunk: Tensor) -> Tensor:
        """dg [R, C] from the gradients by the exponents of `since` and `until` [R, C, K] and of a chunk [R, K]."""
        since = since.sum(-1)
        since[:, -1] += chunk.sum(-1)
        return head_decay_grad(self.pairs, since, until.sum(-1))


class ChannelDecays:
    """g: [R, C, K], overwritten. P is built from blocks of s x s scores, s = 1, 2, 4 .. C/2.

    A block's rows i are the second half of 2 s tokens, its columns j the first half, which ends with token b. There
    exp(G_i - G_j) = exp(sum of g over b+1..i) exp(sum of g over j+1..b), so a block is a matrix product, and every
    exponent is a sum of gates: nothing cancels and nothing overflows. The sums of one size add up to the next.
    """

    def __init__(self, q: Tensor, k: Tensor, g: Tensor) -> None:
        self.q, self.k = q, k  # [R, C, K]
        self.log_since, self.log_until = g, torch.zeros_like(g)  # from the start and to the end of blocks, of 1 first

    def scores(self) -> Tensor:
        p = self.q.new_zeros(*self.q.shape[:2], self.q.shape[1])
        p.diagonal(dim1=1, dim2=2).copy_((self.q * self.k).sum(-1))
        for s, rows, columns in self._levels():
            q, k = self._second(self.q, s) * rows, self._first(self.k, s) * columns
            self._block(p, s).copy_(self._bmm(q, k.mT))
        return p

    def scores_backward(self, dp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From P's gradient, lower triangular: P and what it gives dq and dk."""
        p = torch.zeros_like(dp)
        p.diagonal(dim1=1, dim2=2).copy_((self.q * self.k).sum(-1))
        diagonal = dp.diagonal(dim1=1, dim2=2).unsqueeze(-1)
        dq, dk = self.k * diagonal, self.q * diagonal
        self.exponent_grads = []
        for s, rows, columns in self._levels():
            q, k = self._second(self.q, s) * rows, self._first(self.k, s) * columns
            self._block(p, s).copy_(self._bmm(q, k.mT))
            block = self._block(dp, s)
            dq_block, dk_block = self._bmm(block, k), self._bmm(block.mT, q)
            self._second(dq, s).addcmul_(dq_block, rows)
            self._first(dk, s).addcmul_(dk_block, columns)
            self.exponent_grads.append((s, q.mul_(dq_block), k.mul_(dk_block)))
        return p, dq, dk

    def gate_grad(self, since: Tensor, until: Tensor, chunk: Tensor) -> Tensor:
        """dg [R, C, K] from the gradients by the exponents of `since` and `until` [R, C, K] and of a chunk [R, K].

        The sums of `_levels` in reverse; overwrites its arguments.
        """
        since[:, -1] += chunk
        for s, rows, columns in reversed(self.exponent_grads):
            self._first(since, s)[:, :, -1] += self._second(since, s).sum(2)
            self._second(since, s)[:, :, -1] += self._first(until, s).sum(2)
            self._second(since, s).add_(rows)
            self._first(until, s).add_(columns)
        return since

    @property
    def since(self) -> Tensor:
        """exp(G) [R, C, K], from the chunk's start; once the scores are there."""
        return self.log_since.clamp(min=MIN_LOG_DECAY).exp_()

    @property
    def until(self) -> Tensor:
        """exp(G_C - G) [R, C, K], to its end; once the scores are there."""
        return self.log_until.clamp(min=MIN_LOG_DECAY).exp_()

    def _levels(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For every size of block: s and the decays of rows and columns [R, C / 2s, s, K]."""
        s = 1
        while s < self.q.shape[1]:
            rows, columns = self._second(self.log_since, s), self._first(self.log_until, s)
            yield s, rows.clamp(min=MIN_LOG_DECAY).exp_(), columns.clamp(min=MIN_LOG_DECAY).exp_()
            columns += rows[:, :, -1:]
            rows += self._first(self.log_since, s)[:, :, -1:]
            s *= 2

    @staticmethod
    def _first(x: Tensor, s: int) -> Tensor:
        """First halves of blocks of 2 s tokens: a view [R, C / 2s, s, K] of [R, C, K]."""
        return x.unflatten(1, (-1, 2, s))[:, :, 0]

    @staticmethod
    def _second(x: Tensor, s: int) -> Tensor:
        return x.unflatten(1, (-1, 2, s))[:, :, 1]

    @staticmethod
    def _block(p: Tensor, s: int) -> Tensor:
        """The scores of second halves by first halves: a view [R, C / 2s, s, s] of [R, C, C]."""
        return diagonal_blocks(p, 2 * s)[..., s:, :s]

    @staticmethod
    def _bmm(a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])
