"""Next-token loss that never holds the logits of more than a slice of the tokens."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parts.context import Context

IGNORE = -100
"""The label of a position that has none."""
SLICE = 1 << 21  # logits per slice: 8 MiB of float32, whatever the vocabulary


def row_slices(n_rows: int, vocab_size: int, logits: int) -> Iterator[slice]:
    """Slices that cover n_rows in order, of as many rows as have `logits` logits together, one at least."""
    step = max(1, logits // vocab_size)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def shift_labels(labels: Tensor, sequences: Context) -> Tensor:
    """targets[t] = labels[t + 1] within each sequence, IGNORE at each sequence's last token. [B, T] -> [B, T]."""
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    if sequences.packed:  # the label that would cross into the next document
        targets[0].index_fill_(0, sequences.once(_last_tokens), IGNORE)
    return targets


def _last_tokens(sequences: Context) -> Tensor:
    ends = (stop - 1 for stop, length in zip(sequences.starts[1:], sequences.lengths, strict=True) if length)
    return torch.tensor(list(ends), dtype=torch.int64, device=sequences.device)


class TokenLoss(NamedTuple):
    """Sums over the targets: `total` = nll + z_weight * z, in nats; its parts without gradients; their number, which
    stays on the device."""

    total: Tensor
    nll: Tensor
    z: Tensor
    n_targets: Tensor


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """c tanh(logits / c), or the logits themselves when there is no cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, z_weight: float = 0.0, softcap: float | None = None
) -> TokenLoss:
    """Cross entropy of s = x weight^T without holding all of s.

        nll = sum_t logsumexp(s_t) - s_t[target_t],   z = sum_t logsumexp(s_t)^2

    x: [..., D]; weight: [V, D]; targets: [...], IGNORE where there is none. With `softcap` c, s becomes c tanh(s / c).
    Products run in the autocast dtype if there is one, the rest in float32 at least.
    """
    x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)  # not to be seen inside a Function
    total, nll, z = _LinearCrossEntropy.apply(x, weight, targets, z_weight, softcap, learns)
    return TokenLoss(total, nll, z, (targets != IGNORE).sum())


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward, while a slice's logits are at hand, and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, z_weight: float, softcap: float | None, learns: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = x.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        exact = torch.promote_types(x.dtype, torch.float32)
        dx = torch.empty_like(x) if learns else None
        dw = torch.zeros_like(weight, dtype=exact) if learns else None
        nll, z = x.new_zeros((), dtype=exact), x.new_zeros((), dtype=exact)
        w = weight.to(low)
        with torch.autocast(device, enabled=False):
            for part in row_slices(len(x), len(weight), SLICE):
                h, target = x[part].to(low), targets[part, None]
                kept = (target != IGNORE).to(exact)  # [n, 1]
                target = target.clamp(min=0)
                # every row is multiplied, kept or not: oneDNN builds and caches a kernel for each new shape
                logits = cap((h @ w.T).to(exact), softcap)
                slope = None if softcap is None else 1 - (logits / softcap).square_()  # d capped / d uncapped
                chosen = logits.gather(1, target)
                top = logits.amax(-1, keepdim=True)
                p = logits.sub_(top).exp_()  # in place: a pass over the logits costs as much as a product
                mass = p.sum(-1, keepdim=True)
                lse = mass.log() + top
                nll += ((lse - chosen) * kept).sum()
                z += (lse.square() * kept).sum()
                if dx is not None and dw is not None:
                    # d total / d logits = softmax (1 + 2 z_weight lse) - onehot
                    d = p.mul_(kept * (1 + 2 * z_weight * lse) / mass).scatter_add_(1, target, -kept)
                    d = (d if slope is None else d.mul_(slope)).to(low)
                    dx[part] = (d @ w).to(dx.dtype)
                    dw += d.T @ h
        ctx.save_for_backward(dx, None if dw is None else dw.to(weight.dtype))
        ctx.mark_non_differentiable(nll, z)
        return nll + z_weight * z, nll, z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        dx, dw = ctx.saved_tensors
        return dx * grads[0], dw * grads[0], None, None, None, None


def full_cross_entropy(logits: Tensor, targets: Tensor, z_weight: float = 0.0) -> TokenLoss:
    """The same sums from logits that are already there, for a caller who asked for both."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    targets = targets.reshape(-1)
    kept = targets != IGNORE
    nll = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    z = logits[kept].logsumexp(-1).square().sum()
    return TokenLoss(nll + z_weight * z, nll.detach(), z.detach(), kept.sum())
