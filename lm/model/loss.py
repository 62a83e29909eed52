"""Next-token loss that never holds the logits of more than a slice of the tokens."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.shared import checks
from ...kernels.traced import LIBRARY, define
from ..parts.context import Context

IGNORE = -100
"""The label of a position that has none."""
SLICE = 1 << 21  # logits per slice: 8 MiB of float32, whatever the vocabulary


def row_slices(n_rows: int, vocab_size: int, logits: int) -> Iterator[slice]:
    """Slices that cover n_rows in order, of as many rows as have `logits` logits together, one at least."""
    step = max(1, logits // vocab_size)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def check_one_per_token(name: str, labels: Tensor, x: Tensor) -> None:
    """Raises ValueError unless labels are whole numbers [B, T] for x [B, T, ...]: others would be read as if flat."""
    expected = tuple(x.shape[:2])
    if labels.shape != expected or labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name}: {labels.dtype} {tuple(labels.shape)}, expected torch.int64 {expected}, one per token"
        )


def check_labels(labels: Tensor, vocab_size: int) -> None:
    """Raises ValueError on a label that is neither a token nor IGNORE, where values can be looked at for free.

    On a GPU the kernels that index by it fail.
    """
    if not checks.on_host(labels):
        return
    wrong = labels[((labels < 0) | (labels >= vocab_size)) & (labels != IGNORE)]
    if len(wrong):
        raise ValueError(
            f"labels: {int(wrong[0])} is no token; allowed: 0 to {vocab_size - 1}, or {IGNORE} where there is none"
        )


def shift_labels(labels: Tensor, sequences: Context) -> Tensor:
    """targets[t] = labels[t + 1] within each sequence, IGNORE at each sequence's last token. [B, T] -> [B, T] int64."""
    targets = torch.full_like(labels, IGNORE, dtype=torch.int64)
    targets[:, :-1] = labels[:, 1:]
    if sequences.packed:  # the label that would cross into the next document
        targets[0].index_fill_(0, sequences.once(_last_tokens), IGNORE)
    return targets


def _last_tokens(sequences: Context) -> Tensor:
    ends = (stop - 1 for stop, length in zip(sequences.starts[1:], sequences.lengths, strict=True) if length)
    return torch.tensor(list(ends), dtype=torch.int64, device=sequences.device)


class SoftTargets(NamedTuple):
    """For every token a distribution over the vocabulary, beside its label: q = softmax(cap(hidden weight^T) / T).

    hidden: [..., E], at the token that the next one is predicted from; weight: [V, E]; softcap as in
    `linear_cross_entropy`; share: its part of the loss, in [0, 1], the rest is the label's. No gradient goes into it.
    """

    hidden: Tensor
    weight: Tensor
    softcap: float | None = None
    temperature: float = 1.0
    share: float = 0.5


class TokenLoss(NamedTuple):
    """Sums over the targets, in nats, their parts without gradients; their number, which stays on the device.

    total = nll + z_weight * z; with soft targets (1 - share) * nll + share * T^2 * kl + z_weight * z.
    """

    total: Tensor
    nll: Tensor
    z: Tensor
    kl: Tensor
    n_targets: Tensor


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """c tanh(logits / c), or the logits themselves when there is no cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_weight: float = 0.0,
    softcap: float | None = None,
    soft: SoftTargets | None = None,
) -> TokenLoss:
    """Cross entropy of s = x weight^T without holding all of s.

        nll = sum_t logsumexp(s_t) - s_t[target_t],   z = sum_t logsumexp(s_t)^2
        kl = sum_t KL(q_t || softmax(s_t / T)),       with q and T of the soft targets (Hinton et al. 2015, 1503.02531)

    x: [..., D]; weight: [V, D]; targets: [...], IGNORE where there is none, of either kind. With `softcap` c, s becomes
    c tanh(s / c). Products run in the autocast dtype if there is one, the rest in float32 at least. Raises ValueError
    where soft targets do not fit, or are given to torch.compile.
    """
    x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)  # not to be seen inside a Function
    device = x.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if soft is not None:
        soft = _checked(soft, len(x), len(weight), low)
    if torch.compiler.is_compiling():
        if soft is not None:
            raise ValueError("soft: not traced by torch.compile; compile the model's parts, not the whole")
        total, nll, z, kl, _, _ = TRACED(x, weight, targets, z_weight, softcap, learns, low)
        nll, z, kl = nll.detach(), z.detach(), kl.detach()
    else:
        total, nll, z, kl = _LinearCrossEntropy.apply(x, weight, targets, z_weight, softcap, learns, low, soft)
    return TokenLoss(total, nll, z, kl, (targets != IGNORE).sum())


def _checked(soft: SoftTargets, rows: int, vocab_size: int, low: torch.dtype) -> SoftTargets:
    """As [rows, E], in the products' dtype. Raises ValueError unless each row has a distribution over the tokens."""
    hidden = soft.hidden.detach().reshape(-1, soft.hidden.shape[-1])
    if len(hidden) != rows or soft.weight.shape != (vocab_size, hidden.shape[-1]):
        raise ValueError(
            f"soft: hidden {tuple(soft.hidden.shape)} and weight {tuple(soft.weight.shape)}, expected a row for each "
            f"of {rows} tokens, and a weight [{vocab_size}, {hidden.shape[-1]}]"
        )
    return soft._replace(hidden=hidden, weight=soft.weight.detach().to(low))


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward, while a slice's logits are at hand, and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_weight: float,
        softcap: float | None,
        learns: bool,
        low: torch.dtype,
        soft: SoftTargets | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total, nll, z, kl, *grads = _sums(x, weight, targets, z_weight, softcap, learns, low, soft)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(nll, z, kl)
        return total, nll, z, kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx, *grads), None


def _scaled(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw = ctx.saved_tensors
    return dx * grads[0], dw * grads[0], None, None, None, None, None


def _sums(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_weight: float,
    softcap: float | None,
    learns: bool,
    low: torch.dtype,
    soft: SoftTargets | None = None,
) -> tuple[Tensor, ...]:
    """total, nll, z and kl, and the gradients of `total` by x and by weight, which are empty unless it `learns`."""
    exact = torch.promote_types(x.dtype, torch.float32)
    dx, dw = x.new_empty(x.shape if learns else 0), weight.new_zeros(weight.shape if learns else 0, dtype=exact)
    nll, z, kl = (x.new_zeros((), dtype=exact) for _ in range(3))
    hard = 1.0 if soft is None else 1 - soft.share  # the label's part
    w = weight.to(low)
    with torch.autocast(x.device.type, enabled=False):
        for part in row_slices(len(x), len(weight), SLICE):
            h, target = x[part].to(low), targets[part, None]
            kept = target != IGNORE  # [n, 1]
            target = target.where(kept, 0)
            # every row is multiplied, kept or not: oneDNN builds and caches a kernel for each new shape
            logits = cap((h @ w.T).to(exact), softcap)
            kept = kept.to(exact)
            slope = None if softcap is None else 1 - (logits / softcap).square_()  # d capped / d uncapped
            divergence, pull = (None, None) if soft is None else _divergence(logits, soft, part, low)
            chosen = logits.gather(1, target)
            top = logits.amax(-1, keepdim=True)
            p = logits.sub_(top).exp_()  # in place: a pass over the logits costs as much as a product
            mass = p.sum(-1, keepdim=True)
            lse = mass.log() + top
            nll += ((lse - chosen) * kept).sum()
            z += (lse.square() * kept).sum()
            if divergence is not None:
                kl += (divergence * kept).sum()
            if learns:
                # d total / d logits = softmax (hard + 2 z_weight lse) - hard onehot + share T^2 d kl / d logits
                d = p.mul_(kept * (hard + 2 * z_weight * lse) / mass).scatter_add_(1, target, -hard * kept)
                d = d if pull is None else d.addcmul_(pull, kept)
                d = (d if slope is None else d.mul_(slope)).to(low)
                dx[part] = (d @ w).to(dx.dtype)
                dw += d.T @ h
    total = hard * nll + z_weight * z
    if soft is not None:
        total = total + soft.share * soft.temperature**2 * kl
    return total, nll, z, kl, dx, dw.to(weight.dtype)


def _divergence(logits: Tensor, soft: SoftTargets, part: slice, low: torch.dtype) -> tuple[Tensor, Tensor]:
    """KL(q || softmax(logits / T)) of each row of a slice [n, 1], and share T^2 times its gradient by the logits."""
    theirs = cap((soft.hidden[part].to(low) @ soft.weight.T).to(logits.dtype), soft.softcap)
    log_q = theirs.div_(soft.temperature).log_softmax(-1)
    log_p = (logits / soft.temperature).log_softmax(-1)
    q = log_q.exp()
    divergence = (log_q.sub_(log_p) * q).sum(-1, keepdim=True)
    return divergence, log_p.exp_().sub_(q).mul_(soft.share * soft.temperature)


def _blank_sums(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_weight: float,
    softcap: float | None,
    learns: bool,
    low: torch.dtype,
) -> tuple[Tensor, ...]:
    exact = torch.promote_types(x.dtype, torch.float32)
    sums = (x.new_empty((), dtype=exact) for _ in range(4))
    return *sums, x.new_empty(x.shape if learns else 0), weight.new_empty(weight.shape if learns else 0)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[4:])


# One node for torch.compile, which would unroll the slices anew for every number of tokens.
TRACED = define(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, float z_weight, float? softcap, bool learns, "
    "ScalarType low) -> (Tensor total, Tensor nll, Tensor z, Tensor kl, Tensor dx, Tensor dw)",
    _sums,
    _blank_sums,
)
torch.library.register_autograd(TRACED, _scaled, setup_context=_save, lib=LIBRARY)


def full_cross_entropy(logits: Tensor, targets: Tensor, z_weight: float = 0.0) -> TokenLoss:
    """The same sums from logits that are already there, for a caller who asked for both."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    targets = targets.reshape(-1)
    kept = targets != IGNORE
    nll = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    z = (logits.logsumexp(-1).square() * kept).sum()
    return TokenLoss(nll + z_weight * z, nll.detach(), z.detach(), torch.zeros_like(z), kept.sum())
