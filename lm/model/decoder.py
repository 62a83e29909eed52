"""The language model: embedding, a stack of blocks with any mixers, final norm, head."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.shared.sequences import Sequences
from ..mixers import Mixed, Mixer
from ..mixers.attention.attention import Attention
from ..parts.context import Context
from ..parts.linear import is_plain, project
from ..parts.norm import RMSNorm
from .block import Block
from .cache import Cache
from .filling import fill
from .generate import generate
from .initial import copy_new_parts, draw_matrices, new_parts
from .loss import (
    SoftTargets,
    TokenLoss,
    cap,
    check_labels,
    check_one_per_token,
    full_cross_entropy,
    linear_cross_entropy,
    shift_labels,
)
from .output import Output

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig
    from ..run import Run


class HybridLM(nn.Module):
    """A pre-norm decoder whose layers are given by `config.pattern`, `ratio` or `layers`.

    Initialisation: matrices and embeddings from N(0, s^2), s = `init_std` or min(0.04, 0.02 sqrt(512 / d_model)); the
    two projections by which a layer writes into the residual stream from N(0, s^2 / (2 n_layers)), so that the
    stream's variance does not grow with depth (Radford et al. 2019); norms multiply by 1, biases are 0; what a mixer
    initialises itself stays.

    Rounding: a model cast to bfloat16 rounds as late as it can, unless it is a Llama, all of its layers attention with
    the norm before it. That one rounds where transformers' Llama, Mistral, Qwen2 and Qwen3 do: tables of RoPE, each
    product with them, and normalised activations before a norm's weight. Under autocast nothing of this applies.
    """

    hooks_only_gather = False
    """Whether hooks of modules do no more than gather parameters, which reading one does too: those of ZeRO-3."""

    embed: nn.Embedding
    pos_embed: nn.Embedding | None
    blocks: nn.ModuleList
    shared: nn.ModuleDict
    norm: RMSNorm
    lm_head: nn.Linear

    def __init__(self, config: "BaseModelConfig"):
        super().__init__()
        self.config = config
        for path, part in new_parts(config):
            parent, _, name = path.rpartition(".")
            if parent and parent not in self._modules:
                self.register_module(parent, nn.ModuleList())
            self.get_submodule(parent).register_module(name, part)
        specs = config.layer_specs()
        if all(spec.mixer == "attention" and spec.options.norm == "pre" for spec in specs):
            for module in self.modules():
                if isinstance(module, RMSNorm | Attention):
                    module.llama_rounding = True
        _tie(self)
        draw_matrices(self, config)
        self.register_load_state_dict_post_hook(_tie)

    def init_weights(self) -> None:
        """Initialise every parameter and buffer, and tie the embeddings if they are to be.

        A model made on the meta device and emptied onto another, or sharded by FSDP2, has after that the weights that
        the same seed gives a model made as usual; sharded matrices are drawn by PyTorch's own rule for shards.
        """
        copy_new_parts(self, self.config)
        _tie(self)
        draw_matrices(self, self.config)

    def layers(self) -> Iterator[Block]:
        """The blocks, typed."""
        yield from self.blocks  # type: ignore[misc]

    def mixers(self) -> Iterator[Mixer]:
        """The token mixers in order of depth."""
        return (block.mixer for block in self.layers())

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def new_cache(self, n: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty decoding state for n sequences, in the dtype of the weights unless told otherwise."""
        dtype = dtype or self.embed.weight.dtype
        return Cache([mixer.new_state(n, dtype, self.device) for mixer in self.mixers()], n)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | Literal[True] | None = None,
        *,
        sequences: Sequences | None = None,
        logits: bool = True,
        layers: bool = False,
        soft: SoftTargets | None = None,
    ) -> Output:
        """Score or continue sequences.

        input_ids: [B, T], or in their place embeddings [B, T, D]. labels: [B, T], usually input_ids again: token t is
        predicted from those before it, so a sequence's first label is never used; -100 is ignored, any other that is no
        token refused. cu_seqlens: [N + 1], documents packed end to end, B = 1; `sequences` says the same without a copy
        from the device, for who knows the bounds on the host. attention_mask: [B, T], 0 where a token is padding,
        anywhere in a row. cache: True to start one, or the one to continue. logits=False skips them where only the loss
        is wanted; layers=True keeps what enters every block. soft: for each token a distribution of the next, beside
        its label; needs logits=False. Raises ValueError on shapes that contradict.
        """
        if attention_mask is not None and attention_mask.shape != input_ids.shape[:2]:
            expected = tuple(input_ids.shape[:2])
            raise ValueError(f"attention_mask: shape {tuple(attention_mask.shape)}, expected {expected}")
        if labels is not None:
            check_one_per_token("labels", labels, input_ids)
        elif soft is not None:
            raise ValueError("soft: needs labels, which say at which tokens there is something to predict")
        if attention_mask is not None and not bool((attention_mask == 1).all()):
            if cu_seqlens is not None or sequences is not None:
                raise ValueError("attention_mask: cannot be combined with cu_seqlens; packed documents have no padding")
            return self._forward_padded(input_ids, labels, attention_mask, cache, logits, layers, soft)
        sequences = Sequences.given(input_ids, cu_seqlens, sequences)
        past = self._past(cache, len(sequences))
        context = Context.of_sequences(sequences, past, input_ids.device)
        return self._run(input_ids, labels, context, cache, logits, layers, soft)

    def _past(self, cache: Cache | Literal[True] | None, n: int) -> list[int] | None:
        if not isinstance(cache, Cache):
            return None
        if len(cache.lengths) != n:
            raise ValueError(
                f"cache: holds {len(cache.lengths)} sequences but the batch has {n}; use cache.select(rows)"
            )
        return cache.lengths

    def _run(
        self,
        input_ids: Tensor,
        labels: Tensor | None,
        sequences: Context,
        cache: Cache | Literal[True] | None,
        logits: bool,
        layers: bool,
        soft: SoftTargets | None,
        real: Tensor | None = None,
    ) -> Output:
        if cache is True:
            cache = self.new_cache(len(sequences))
        x = self._embed(input_ids, sequences)
        losses: dict[str, Tensor] = {}
        stats: dict[int, dict[str, Tensor]] = {}
        entered: list[Tensor] = []
        shared = {kind: module() for kind, module in self.shared.items()}
        with cache.continuing(sequences.lengths) if cache else nullcontext([None] * len(self.blocks)) as states:
            for i, (block, state) in enumerate(zip(self.layers(), states, strict=True)):
                own = (shared[block.kind][i],) if block.kind in shared else ()
                if layers:  # as [B, T, D], and on the way of the gradient too
                    entered.append(x if real is None else _spread(x, real))
                    x = entered[-1] if real is None else entered[-1][real][None]
                mixed = block(x, sequences, state, *own)
                if not isinstance(mixed, Mixed):
                    raise TypeError(
                        f"block {i} returned a {type(mixed).__name__}; allowed: its Mixed, auxiliary losses included; "
                        "torch.utils.checkpoint keeps it with use_reentrant=False"
                    )
                x = mixed.y
                for name, loss in mixed.losses.items():
                    losses[name] = losses[name] + loss if name in losses else loss
                if mixed.stats:
                    stats[i] = dict(mixed.stats)
        x = self.norm(x)
        scores = self.head(x) if logits else None
        loss, terms = None, {}
        if labels is not None:
            check_labels(labels, self.config.vocab_size)
            loss, terms = self._loss(x, scores, shift_labels(labels, sequences), losses, soft)
        return Output(scores, loss, losses, cache, stats, x, tuple(entered), terms)

    def _embed(self, input_ids: Tensor, sequences: Context) -> Tensor:
        """[B, T] -> [B, T, D]. Raises ValueError beyond the last learned position."""
        x = input_ids if input_ids.ndim == 3 else self.embed(input_ids)
        if self.pos_embed is not None:
            end, context = max(map(sum, zip(sequences.past, sequences.lengths, strict=True))), self.config.context
            if end > context:
                raise ValueError(
                    f"input_ids: {end} tokens in a sequence, but positions=learned has {context}; give at most "
                    "model.context tokens"
                )
            x = x + self.pos_embed(sequences.positions)
        return F.dropout(x, self.config.dropout, self.training)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of `Output.hidden` [..., D], capped if the model caps them."""
        return cap(project(self.lm_head, hidden), self.config.logit_softcap)

    def _loss(
        self, x: Tensor, logits: Tensor | None, targets: Tensor, losses: dict[str, Tensor], soft: SoftTargets | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the targets plus auxiliary losses, to which the z-loss (Chowdhery et al. 2022, sec. 5) is added.

        With soft targets the means of what is mixed, too.
        """
        sums = self._sums(x, logits, targets, soft)
        n = sums.n_targets.clamp(min=1)
        loss = sums.total / n + sum(losses.values())
        if self.config.z_loss:
            losses["z_loss"] = self.config.z_loss * sums.z / n
        return loss, {} if soft is None else {"ce": sums.nll / n, "kl": sums.kl / n}

    def _sums(self, x: Tensor, logits: Tensor | None, targets: Tensor, soft: SoftTargets | None) -> TokenLoss:
        z_weight, softcap = self.config.z_loss, self.config.logit_softcap
        if logits is None and is_plain(self.lm_head, hooks=self.hooks_only_gather):
            weight = self.lm_head.weight
            return linear_cross_entropy(x, weight, targets, z_weight=z_weight, softcap=softcap, soft=soft)
        if soft is not None:
            raise ValueError("soft: needs logits=False and an output head that nobody has wrapped")
        if logits is None:
            logits = self.head(x)  # an adapter, a hook, another dtype: what it computes is not in the weight
        return full_cross_entropy(logits, targets, z_weight=z_weight)

    def _forward_padded(
        self,
        input_ids: Tensor,
        labels: Tensor | None,
        attention_mask: Tensor,
        cache: Cache | Literal[True] | None,
        logits: bool,
        layers: bool,
        soft: SoftTargets | None,
    ) -> Output:
        """Drop the padding, run the real tokens as packed sequences, put what came out back (zero at padding)."""
        real = attention_mask.bool()
        if bool((wrong := attention_mask != real).any()):
            raise ValueError(
                f"attention_mask: holds {attention_mask[wrong][0].item()}; allowed: 1 at a token, 0 at padding; masks "
                "that are added to scores are none, and documents in one row are cu_seqlens"
            )
        past = self._past(cache, len(input_ids))
        sequences = Context.documents_after(real.sum(1).tolist(), past, input_ids.device)
        packed = None if labels is None else labels[real][None]
        soft = soft and soft._replace(hidden=soft.hidden[real][None])
        output = self._run(input_ids[real][None], packed, sequences, cache, logits, layers, soft, real)
        scores = None if output.logits is None else _spread(output.logits, real)
        return output._replace(logits=scores, hidden=_spread(output.hidden, real))

    generate = generate

    def flops_per_token(self, T: int) -> float:
        """Forward matmul FLOPs per token in a sequence of T tokens, from the layer list; training takes three times."""
        head = 2 * self.lm_head.weight.numel()
        return head + sum(block.flops_per_token(T) for block in self.layers())

    def state_bytes(self, T: int, dtype: torch.dtype | None = None) -> int:
        """Bytes of one sequence's decoding state after T tokens."""
        return sum(mixer.state_bytes(T, dtype or self.embed.weight.dtype) for mixer in self.mixers())

    @classmethod
    def from_run(cls, path: "str | Path | Run", device: str | torch.device = "cpu") -> "HybridLM":
        """The model of a run folder with the weights of its newest checkpoint, in evaluation mode.

        Raises CheckpointError when they are not the weights of its recipe.
        """
        from ..run import Run

        run = path if isinstance(path, Run) else Run(path)
        model = cls(run.recipe.model)
        fill(model, run.weights(), run.newest_checkpoint(), model.config.tie_embeddings)
        return model.to(device).eval()


def _tie(model: HybridLM, _: object = None) -> None:
    """One parameter for embedding and head, which `to_empty` and `load_state_dict(assign=True)` make two."""
    if model.config.tie_embeddings and isinstance(model.lm_head, nn.Linear):
        model.lm_head.weight = model.embed.weight


def _spread(packed: Tensor, real: Tensor) -> Tensor:
    """packed [1, n, C] at the n places where real [B, T] holds, zero elsewhere: [B, T, C]."""
    return packed.new_zeros(*real.shape, packed.shape[-1]).masked_scatter(real[..., None], packed)
