"""The `hybridlm` model type: a `HybridLM` behind the interface of transformers, `generate` included."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ..model import Output
from ..model.loss import IGNORE, check_labels, check_one_per_token
from .configuration import HybridLMConfig
from .decoding import HybridLMCache, check_ends, check_positions, own_cache, recent
from .pretrained import HybridLMPreTrainedModel

__all__ = ["HybridLMCache", "HybridLMForCausalLM", "HybridLMModel"]


PASSED_ON = {"tokenizer", "assistant_tokenizer"}
"""Arguments of `generate` that it hands on to every forward."""


class HybridLMModel(HybridLMPreTrainedModel):
    """The model without its head, `AutoModel`: what the head would read, as last_hidden_state."""

    _tied_weights_keys = None
    _keys_to_ignore_on_load_unexpected = [r"^model\.lm_head\.weight$"]  # noqa: RUF012  the base class's declaration

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        self.model.lm_head = cast(nn.Linear, nn.Identity())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridLMCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple:
        """Arguments and errors are those of `HybridLMForCausalLM.forward`."""
        ran = _run(
            self,
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        result = BaseModelOutputWithPast(
            last_hidden_state=cast(Any, ran.output.hidden),
            past_key_values=cast(Any, ran.cache),
            hidden_states=cast(Any, ran.hidden_states),
        )
        return result if _as_dict(self, return_dict) else result.to_tuple()


class HybridLMForCausalLM(HybridLMPreTrainedModel, GenerationMixin):
    """A `HybridLM` as `model`, with the arguments, outputs and files of a transformers model."""

    accepts_loss_kwargs = True  # Trainer asks: num_items_in_batch is understood

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridLMCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Score or continue rows.

        input_ids: [B, T], or inputs_embeds: [B, T, D] in their place. attention_mask: [B, T], or [B, past + T] as
        `generate` passes it, 0 at padding, which may be anywhere and is exactly as if it were not there; logits there
        are those of a zero vector. position_ids: [B, T], checked: positions follow from the mask and the past. labels:
        [B, T], shifted here, -100 ignored; the loss is a mean over them and has the model's auxiliary losses in it.
        num_items_in_batch: the labels of all the micro-batches whose gradients are added up, this one weighs by its
        share of them. shift_labels: [B, T], in the place of labels: the next token of each. use_cache: None takes the
        configuration's outside of training. output_hidden_states: what enters each layer, then what the head reads.
        logits_to_keep: only the last so many columns, or these columns; 0 keeps all.

        Raises ValueError on shapes that contradict, on positions that the model would not use, on output_attentions
        and on a cache beside gradient checkpointing; TypeError for another model's cache and unknown arguments.
        """
        ran = _run(
            self,
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        # no argument of its own: Trainer would ask every batch for whatever has `label` in its name
        shift_labels = kwargs.pop("shift_labels", None)
        if unknown := kwargs.keys() - PASSED_ON:
            raise TypeError(f"{', '.join(sorted(unknown))}: unknown to HybridLMForCausalLM.forward; leave it out")
        for name, given in {"labels": labels, "shift_labels": shift_labels}.items():
            if given is not None:
                check_one_per_token(name, given, ran.output.hidden)
        if shift_labels is None and labels is not None:
            shift_labels = _next(labels, ran.mask)
        loss = None if shift_labels is None else self._loss(ran, shift_labels, num_items_in_batch)
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=self.model.head(ran.output.hidden[:, columns]),
            past_key_values=cast(Any, ran.cache),
            hidden_states=cast(Any, ran.hidden_states),
        )
        return result if _as_dict(self, return_dict) else result.to_tuple()

    def generate(self, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        """As transformers has it. Raises ValueError without a row, on rows of padding, and on padding behind a prompt,
        where it would go on from the padding."""
        ids = options.get("input_ids") if inputs is None else inputs
        if ids is not None and not ids.numel():
            raise ValueError(f"input_ids: expected at least one row of at least one token, got {tuple(ids.shape)}")
        return cast(Any, super()).generate(inputs, *args, **options)

    def _loss(self, ran: "Ran", targets: Tensor, n: int | Tensor | None) -> Tensor:
        """Mean over the targets plus auxiliary losses; of `n` targets in all, this call's part."""
        kept = targets.long() if ran.mask is None else targets.long().masked_fill(ran.mask == 0, IGNORE)
        check_labels(kept, self.model.config.vocab_size)
        # offloaded, only the head's own forward has its weight
        logits = self.model.head(ran.output.hidden) if self.model.lm_head.weight.is_meta else None
        loss, _ = self.model._loss(ran.output.hidden, logits, kept, dict(ran.output.aux_losses), None)
        return loss if n is None else loss * ((kept != IGNORE).sum() / torch.as_tensor(n).clamp(min=1))

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        """Looks at the prompt's mask, given or inferred, once and whole: a chunk of it may end in padding.

        Makes a cache before a prefill in chunks; else the first call does, as peft's prompts want.
        """
        if (mask := model_kwargs.get("attention_mask")) is not None:
            check_ends(mask)
        cast(Any, super())._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        if generation_config.prefill_chunk_size is not None and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = HybridLMCache()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.lm_head = cast(nn.Linear, new_embeddings)


class Ran(NamedTuple):
    """What came of a call: the model's output, the cache that goes on, hidden states if wanted, this call's mask."""

    output: Output
    cache: HybridLMCache | None
    hidden_states: tuple[Tensor, ...] | None
    mask: Tensor | None


def _run(
    head: HybridLMPreTrainedModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: Any,
    inputs_embeds: Tensor | None,
    use_cache: bool | None,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
) -> Ran:
    """The model on its arguments, all checked."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids: give either them or inputs_embeds")
    if _wanted(head, "output_attentions", output_attentions):
        raise ValueError(
            "output_attentions: no layer here forms a matrix of weights that could be returned; leave it out"
        )
    model, x = head.model, cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
    B, T = x.shape[:2]
    cache = own_cache(past_key_values)
    if use_cache is None:
        use_cache = head.config.use_cache and not head.training
    if cache is None and use_cache:
        cache = HybridLMCache()
    if cache is not None and head.training and head.is_gradient_checkpointing:
        raise ValueError("use_cache: a layer that runs again in the backward cannot keep a state; use use_cache=False")
    mask = None if attention_mask is None else recent(attention_mask, T, cache.columns if cache else 0)
    if position_ids is not None:
        check_positions(position_ids, mask, cache.past(B) if cache else [0] * B)
    layers = _wanted(head, "output_hidden_states", output_hidden_states)
    output = model(
        x,
        attention_mask=mask,
        cache=None if cache is None else cache.started(model, B, x.device),
        logits=False,
        layers=layers,
    )
    if cache is not None:
        cache.state, cache.columns = output.cache, cache.columns + T
    return Ran(output, cache, (*output.layers, output.hidden) if layers else None, mask)


def _wanted(head: HybridLMPreTrainedModel, name: str, given: bool | None) -> bool:
    return bool(getattr(head.config, name, False) if given is None else given)


def _as_dict(head: HybridLMPreTrainedModel, given: bool | None) -> bool:
    return getattr(head.config, "return_dict", True) if given is None else given


def _next(labels: Tensor, mask: Tensor | None) -> Tensor:
    """The next real token's label at each real token, IGNORE where there is none. [B, T] -> [B, T]."""
    targets = torch.full_like(labels, IGNORE)
    if mask is None:
        targets[:, :-1] = labels[:, 1:]
        return targets
    real = mask.bool()
    first = real & (real.cumsum(1) == 1)
    last = real & (real.flip(1).cumsum(1).flip(1) == 1)
    targets[real & ~last] = labels[real & ~first]
    return targets
