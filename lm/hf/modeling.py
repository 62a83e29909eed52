"""The `hybridlm` model type: a `HybridLM` behind the interface of transformers, `generate` included."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from ..model import Cache, HybridLM
from ..parts.errors import ConfigError
from ..parts.float32 import Float32Module
from .configuration import HybridLMConfig


class HybridLMCache:
    """The decoding state as `generate` carries it: what the model remembers of each row, and the columns it has seen.

    Rows differ in length where there was padding, which no state contains; columns count it.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.state: Cache | None = None
        self.columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input_ids seen so far, padding included."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, in this order; a row may be kept more than once."""
        if self.state is not None:
            self.state = self.state.select(beam_idx.tolist())

    def past(self, rows: int) -> list[int]:
        """Tokens that the state of each row has seen."""
        return self.state.lengths if self.state is not None else [0] * rows


class HybridLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A `HybridLM` as `model`, with the arguments, outputs and files of a transformers model."""

    config_class = HybridLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys = {"model.lm_head.weight": "model.embed.weight"}  # noqa: RUF012  the base class's declaration
    _is_stateful = True  # a recurrent state cannot be wound back, as assisted decoding would need
    _supports_attention_backend = False

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        self.model = HybridLM(config.model_config())
        self._keep_in_fp32_modules_strict = {
            f"model.{path}.{name}"
            for path, module in self.model.named_modules()
            if isinstance(module, Float32Module)
            for name in module.float32_parameters
        }
        for parameter in self.model.parameters():
            if not parameter.is_meta:
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]  HybridLM initialises itself
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Called for the larger embedding of resize_token_embeddings, and for modules that a checkpoint lacks.

        Raises ConfigError in the second case: no weight may be missing.
        """
        missing = [path for path, other in self.named_modules() if other is module]
        if missing:
            raise ConfigError(f"checkpoint: has no weights for {', '.join(missing)}; export the model again")
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=float(self.model.embed.weight.detach().std()))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # keys and values are not all that there is to remember

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridLMCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple:
        """Score or continue rows.

        input_ids: [B, T]. attention_mask: [B, T], or [B, past + T] as `generate` passes it, 0 at padding, which may be
        anywhere and is exactly as if it were not there; logits there are those of a zero vector. position_ids: [B, T],
        checked: positions follow from the mask and the past. labels: [B, T], shifted here, -100 ignored; the loss has
        the model's auxiliary losses in it. use_cache: None takes the configuration's outside of training.
        logits_to_keep: only the last so many columns, or these columns; 0 keeps all.

        Raises ValueError on shapes that contradict and on positions that the model would not use.
        """
        B, T = input_ids.shape
        cache = past_key_values
        if cache is None and (use_cache if use_cache is not None else self.config.use_cache and not self.training):
            cache = HybridLMCache()
        mask = None if attention_mask is None else _recent(attention_mask, T, cache.columns if cache else 0)
        if position_ids is not None:
            _check_positions(position_ids, mask, cache.past(B) if cache else [0] * B)
        state = None if cache is None else cache.state or True
        output = self.model(input_ids, labels, attention_mask=mask, cache=state, logits=False)
        if cache is not None:
            cache.state, cache.columns = output.cache, cache.columns + T
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        result = CausalLMOutputWithPast(
            loss=output.loss,
            logits=self.model.head(output.hidden[:, columns]),
            past_key_values=cast(Any, cache),
        )
        return result.to_tuple() if return_dict is False else result

    def generate(self, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        """As transformers has it. Raises ValueError without a row, on rows of padding, and on padding behind a prompt,
        where it would go on from the padding."""
        ids = options.get("input_ids") if inputs is None else inputs
        if ids is not None and not ids.numel():
            raise ValueError(f"input_ids: expected at least one row of at least one token, got {tuple(ids.shape)}")
        return cast(Any, super()).generate(inputs, *args, **options)

    def prepare_inputs_for_generation(
        self, *args: Any, attention_mask: Tensor | None = None, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Looks at the mask, given or inferred, with which the first token is drawn."""
        if is_first_iteration and attention_mask is not None:
            _check_ends(attention_mask)
        return cast(Any, super()).prepare_inputs_for_generation(
            *args, attention_mask=attention_mask, is_first_iteration=is_first_iteration, **kwargs
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.lm_head = cast(nn.Linear, new_embeddings)


def _recent(mask: Tensor, T: int, seen: int) -> Tensor:
    """The part [B, T] of a mask that belongs to this call's tokens."""
    if mask.ndim != 2 or mask.shape[1] not in (T, seen + T):
        raise ValueError(
            f"attention_mask: shape {tuple(mask.shape)} for {T} new tokens after {seen} columns; give one value per "
            f"token [B, {T}], or the past too [B, {seen + T}]"
        )
    return mask[:, mask.shape[1] - T :]


def _check_ends(mask: Tensor) -> None:
    """Raises ValueError unless every row of a prompt's mask ends in a token."""
    ends = mask[:, -1].bool()
    if not bool(ends.all()):
        row = int((~ends).nonzero()[0])
        only = " is padding only; leave it out, or begin it with a BOS token"
        behind = " ends in padding; pad prompts on the left (tokenizer.padding_side='left')"
        raise ValueError(f"attention_mask: row {row}{behind if mask[row].any() else only}")


def _check_positions(position_ids: Tensor, mask: Tensor | None, past: list[int]) -> None:
    """Raises ValueError where a real token's given position is not the one that it has in its row."""
    real = torch.ones_like(position_ids) if mask is None else mask.long()
    expected = torch.tensor(past, device=real.device)[:, None] + real.cumsum(-1) - 1
    wrong = (position_ids != expected) & real.bool()
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        given, own = position_ids.expand_as(wrong)[row, column], expected[row, column]
        raise ValueError(
            f"position_ids: {int(given)} for the token in row {row}, column {column}, which is number {int(own)} of "
            "its row; positions follow from the attention_mask, leave position_ids out"
        )
