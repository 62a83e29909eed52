"""One correct toy mixer and its broken variants: each changes one thing, and one contract must notice."""

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hybridlm.lm.mixers import Mixed, Mixer
from hybridlm.lm.mixers.moh import MoH
from hybridlm.lm.mixers.options import MixerConfig
from hybridlm.lm.model.decoder import HybridLM
from hybridlm.lm.parts.context import Context
from hybridlm.lm.parts.state import LayerState

if TYPE_CHECKING:
    from hybridlm.lm.recipe.model import BaseModelConfig

BLOCK = 64


class LeakyMemory(Mixer):
    """v = x W_v;  h_t = exp(-r) h_{t-1} + v_t;  y = h W_o, r = exp(log_rate) learned. Keeps every contract."""

    constant_state = True
    float32_parameters = ("log_rate",)

    def __init__(self, options: MixerConfig, model: "BaseModelConfig", index: int):
        super().__init__(options, model, index)
        self.d_model = model.d_model
        self.v_proj = nn.Linear(model.d_model, model.d_model, bias=False)
        self.o_proj = nn.Linear(model.d_model, model.d_model, bias=False)
        self.log_rate = nn.Parameter(torch.full((1,), -4.0))

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        v = self.values(x, sequences)
        h = self.start(v, sequences, state)  # [N, D]
        with torch.autocast(x.device.type, enabled=False):
            results = [self.recur(row, h[n]) for n, row in enumerate(self.rows(v, sequences))]
        y = torch.cat([out for out, _ in results]).view(x.shape).to(x.dtype)
        if state is not None:
            self.remember(state, sequences, torch.stack([end for _, end in results]).detach())
        return Mixed(self.o_proj(y))

    def values(self, x: Tensor, sequences: Context) -> Tensor:
        """[B, T, D]."""
        return self.v_proj(x)

    def start(self, v: Tensor, sequences: Context, state: LayerState | None) -> Tensor:
        """The memory before this call [N, D]."""
        if state is not None:
            return state["h"]
        return v.new_zeros(len(sequences), self.d_model, dtype=torch.promote_types(v.dtype, torch.float32))

    def rows(self, v: Tensor, sequences: Context) -> tuple[Tensor, ...]:
        """One [length, D] per sequence."""
        return v[0].split(list(sequences.lengths)) if sequences.packed else v.unbind(0)

    def rate(self) -> Tensor:
        return self.log_rate.exp()

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """v [T, D], h [D] -> memories [T, D] and the last one [D]."""
        t = torch.arange(len(v), device=v.device)
        age = (t[:, None] - t).clamp(min=0)
        decay = (-self.rate() * age).exp().tril()  # [T, T]
        y = decay.to(h.dtype) @ v.to(h.dtype) + (-self.rate() * (t + 1)[:, None]).exp() * h
        return y, y[-1] if len(v) else h

    def remember(self, state: LayerState, sequences: Context, h: Tensor) -> None:
        state.update(h=h)

    def new_state(self, n: int, dtype: torch.dtype, device: torch.device) -> LayerState:
        return LayerState(
            h=torch.zeros(n, self.d_model, dtype=torch.promote_types(dtype, torch.float32), device=device)
        )

    def flops_per_token(self, T: int) -> float:
        return 4 * self.d_model**2 + 2 * T * self.d_model

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        return self.d_model * max(dtype.itemsize, 4)


# contract 1: no look-ahead


class SeesTheMean(LeakyMemory):
    """Adds the mean over the whole sequence."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        return y + v.mean(0), end


class PeeksInsideBlocks(LeakyMemory):
    """Sees the next token unless it lies in the next block of 64."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        inside = (torch.arange(1, len(v)) % BLOCK != 0)[:, None]
        return torch.cat((y[:-1] + v[1:] * inside, y[-1:])), end


class PeeksAcrossBlocks(LeakyMemory):
    """The last token of each block sees the first of the next one."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        across = (torch.arange(1, len(v)) % BLOCK == 0)[:, None]
        return torch.cat((y[:-1] + v[1:] * across, y[-1:])), end


class LeaksGradients(LeakyMemory):
    """Right values, but the gradient of every output reaches every input."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        mean = v.mean(0)
        return y + mean - mean.detach(), end


class MixesNothing(LeakyMemory):
    """Every token sees itself alone: trivially causal, and no mixer."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return v, h


# contract 2: prefix consistency


class DividesByLength(LeakyMemory):
    """A normaliser that depends on how long the sequence is."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        return y / len(v), end


# contract 3: decode parity


class ForgetsSteps(LeakyMemory):
    """Single tokens are answered but not remembered."""

    def remember(self, state: LayerState, sequences: Context, h: Tensor) -> None:
        if sequences.lengths[0] > 1:
            state.update(h=h)


class StartsAfresh(LeakyMemory):
    """Every call with more than one token starts from nothing."""

    def start(self, v: Tensor, sequences: Context, state: LayerState | None) -> Tensor:
        return super().start(v, sequences, state if max(sequences.lengths) == 1 else None)


class RemembersAside(LeakyMemory):
    """The true memory lies on the mixer, where neither save nor select can see it."""

    def remember(self, state: LayerState, sequences: Context, h: Tensor) -> None:
        self.aside = h

    def start(self, v: Tensor, sequences: Context, state: LayerState | None) -> Tensor:
        fresh = super().start(v, sequences, state)
        return fresh if sequences.fresh else self.aside[: len(fresh)]


# contract 4: packing


class JoinsDocuments(LeakyMemory):
    """Packed documents are one sequence."""

    def rows(self, v: Tensor, sequences: Context) -> tuple[Tensor, ...]:
        return v.unbind(0)


class ConvolvesAcrossDocuments(LeakyMemory):
    """The memory resets, but a width-2 convolution before it does not."""

    def values(self, x: Tensor, sequences: Context) -> Tensor:
        v = super().values(x, sequences)
        return v + torch.cat((torch.zeros_like(v[:, :1]), v[:, :-1]), 1)


class PredictsAcrossDocuments(HybridLM):
    """The last token of a document is trained to predict the first one of the next."""

    def forward(self, input_ids, labels=None, cu_seqlens=None, **how):
        output = super().forward(input_ids, None, cu_seqlens, **{**how, "logits": True})
        if labels is None or output.logits is None:
            return output
        return output._replace(loss=nn.functional.cross_entropy(output.logits[0, :-1], labels[0, 1:]))


# contract 5: padding


class CountsRows(LeakyMemory):
    """Positions are those of the row, padding and neighbours included."""

    def values(self, x: Tensor, sequences: Context) -> Tensor:
        return super().values(x, sequences) * torch.arange(x.shape[1])[:, None].cos()


class IgnoresTheMask(HybridLM):
    """Padding is a token like any other."""

    def forward(self, input_ids, labels=None, cu_seqlens=None, attention_mask=None, **how):
        return super().forward(input_ids, labels, cu_seqlens, **how)


# contract 6: batch invariance


class CentresOverTheBatch(LeakyMemory):
    """Subtracts the mean over the rows, causal but a batch statistic."""

    def values(self, x: Tensor, sequences: Context) -> Tensor:
        v = super().values(x, sequences)
        return v - 0.5 * v.mean(0, keepdim=True)


# contract 8: extremes


class DividesByDeviation(LeakyMemory):
    """The unbiased deviation of one token is NaN."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        return y / ((v - v.mean(0)).square().sum(0) / (len(v) - 1)).sqrt(), end


class Overflows(LeakyMemory):
    """The factorised form exp(-rt) cumsum(exp(rt) v), which overflows for fast decay."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        growth = (self.rate() * torch.arange(1, len(v) + 1)[:, None]).exp()
        y = ((growth * v).cumsum(0) + h) / growth
        return y, y[-1] if len(v) else h


class Explodes(LeakyMemory):
    """The memory grows by exp(r) with every token."""

    def rate(self) -> Tensor:
        return -super().rate()


class NeedsPowersOfTwo(LeakyMemory):
    """The form for many tokens covers a power of two of channels and leaves the rest at zero."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        width = 2 ** int(math.log2(self.d_model))
        return (torch.cat((y[:, :width], torch.zeros_like(y[:, width:])), 1) if len(v) > 1 else y), end


# contract 9: accounting


class CountsHalf(LeakyMemory):
    """A multiply-add counted as one FLOP."""

    def flops_per_token(self, T: int) -> float:
        return super().flops_per_token(T) / 2


class CountsOneLength(LeakyMemory):
    """Right at 128 tokens only: the part that grows with T is missing."""

    def flops_per_token(self, T: int) -> float:
        return super().flops_per_token(128)


class CountsAllHeads(MoH):
    """Those that a token does not use are counted too."""

    def flops_per_token(self, T: int) -> float:
        unused = self.n_heads - self.heads.active
        return super().flops_per_token(T) + 4 * self.visible.keys(T) * unused * self.head_dim


class CountsOneDtype(LeakyMemory):
    """The memory is float32 whatever the activations are; its declared size is not."""

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        return self.d_model * dtype.itemsize


class ClaimsConstant(LeakyMemory):
    """Keeps every value and calls that constant."""

    def remember(self, state: LayerState, sequences: Context, h: Tensor) -> None:
        past = state["all"] if "all" in state.tensors() else h[:, None, :0].new_zeros(len(h), 0, self.d_model)
        new = h[:, None].expand(-1, sequences.lengths[0], -1)
        state.update(h=h, all=torch.cat((past, new), 1))

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        return (T + 1) * super().state_bytes(T, dtype)


# contract 10: training dtype


class RoundsItsDecay(LeakyMemory):
    """The decay parameter follows the model's dtype."""

    float32_parameters = ()


class Rates(nn.Module):
    """Log rates of all layers [n_layers, 1]."""

    def __init__(self, n_layers: int):
        super().__init__()
        self.table = nn.Parameter(torch.full((n_layers, 1), -4.0))

    def forward(self) -> Tensor:
        return self.table


class RoundsItsSharedRates(LeakyMemory):
    """A table for all layers, which follows the model's dtype, scales the output."""

    @classmethod
    def shared(cls, layers: list[MixerConfig], model: "BaseModelConfig") -> Rates:
        return Rates(model.n_layers)

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None, *rate: Tensor) -> Mixed:
        mixed = super().forward(x, sequences, state)
        return mixed._replace(y=mixed.y * rate[0].exp())


class DecaysInLowPrecision(LeakyMemory):
    """exp(-r) is rounded to bfloat16 when the activations are: decays near 1 become 1."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = h, h
        outs = []
        for row in v:
            end = (-self.rate()).exp().to(v.dtype) * end.to(v.dtype) + row
            outs.append(end)
        y = torch.stack(outs) if outs else v
        return y, end.to(h.dtype)


# contract 13: modes


class KeepsItsPositions(LeakyMemory):
    """A table that is made once, in whatever mode the first call is."""

    def rate(self) -> Tensor:
        if "ones" not in vars(self):
            self.ones = torch.ones(1)
        return self.log_rate.exp() * self.ones


# contract 12: initialisation


class CountsItsModels(LeakyMemory):
    """The rate depends on how many of them were made before."""

    made = itertools.count()

    def __init__(self, options: MixerConfig, model: "BaseModelConfig", index: int):
        super().__init__(options, model, index)
        nn.init.constant_(self.log_rate, -4.0 - next(self.made))


# contract 11: torch.compile


class LooksAtItsValues(LeakyMemory):
    """Asks the host for a value, which ends a graph."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, end = super().recur(v, h)
        return (y if float(v.detach().sum()) < 1e30 else -y), end


class DependsOnItsLength(LeakyMemory):
    """Steps through its tokens in Python, so that each length is a graph of its own."""

    def recur(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        outs = []
        for t in range(len(v)):
            h = (-self.rate()).exp() * h + v[t]
            outs.append(h)
        return torch.stack(outs), h
