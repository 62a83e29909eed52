"""Next-token loss that never holds the logits of more than a slice of the tokens."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sequences import Sequences

IGNORE = -100
SLICE = 1 << 22  # logits per slice: 16 MiB of float32, whatever the vocabulary


def shift_labels(labels: Tensor, sequences: Sequences) -> Tensor:
    """targets[t] = labels[t + 1] within each sequence, IGNORE at each sequence's last token. [B, T] -> [B, T]."""
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    if sequences.packed and sequences.cu_seqlens is not None:
        ends = sequences.cu_seqlens[1:] - 1
        targets[0, ends[ends >= 0]] = IGNORE  # the label that would cross into the next document
    return targets


class TokenLoss(NamedTuple):
    """Sums over the targets: `total` = nll + z_weight * z, in nats; its parts without gradients; their number."""

    total: Tensor
    nll: Tensor
    z: Tensor
    n_targets: int


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
    keep = (targets != IGNORE).nonzero().squeeze(1)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)  # not to be seen inside a Function
    total, nll, z = _LinearCrossEntropy.apply(x[keep], weight, targets[keep], z_weight, softcap, learns)
    return TokenLoss(total, nll, z, len(keep))


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
        step = max(1, SLICE // len(weight))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(x), step):
                part = slice(start, start + step)
                h, target = x[part].to(low), targets[part, None]
                logits = cap((h @ w.T).to(exact), softcap)
                lse = logits.logsumexp(-1, keepdim=True)
                nll += (lse - logits.gather(1, target)).sum()
                z += lse.square().sum()
                if dx is not None and dw is not None:
                    d = _logit_grads(logits, lse, target, z_weight, softcap).to(low)
                    dx[part] = (d @ w).to(dx.dtype)
                    dw += d.T @ h
        ctx.save_for_backward(dx, None if dw is None else dw.to(weight.dtype))
        ctx.mark_non_differentiable(nll, z)
        return nll + z_weight * z, nll, z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        dx, dw = ctx.saved_tensors
        return dx * grads[0], dw * grads[0], None, None, None, None


def _logit_grads(logits: Tensor, lse: Tensor, target: Tensor, z_weight: float, softcap: float | None) -> Tensor:
    """d total / d uncapped logits: softmax (1 + 2 z_weight lse) - onehot, through the cap."""
    d = (logits - lse).exp_()
    if z_weight:
        d.mul_(1 + 2 * z_weight * lse)
    d.scatter_add_(1, target, d.new_full(target.shape, -1))
    return d if softcap is None else d.mul_(1 - (logits / softcap).square_())


def full_cross_entropy(logits: Tensor, targets: Tensor, z_weight: float = 0.0) -> TokenLoss:
    """The same sums from logits that are already there, for a caller who asked for both."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    targets = targets.reshape(-1)
    kept = targets != IGNORE
    nll = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    z = logits[kept].logsumexp(-1).square().sum()
    return TokenLoss(nll + z_weight * z, nll.detach(), z.detach(), int(kept.sum()))
