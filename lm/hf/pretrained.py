"""A `HybridLM` inside a transformers model: how it is made, loaded, initialised, taken apart and recomputed."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from ..mixers import Mixed
from ..model import HybridLM
from ..model.block import Block
from ..parts.context import Context
from ..parts.errors import CheckpointError, ConfigError
from ..parts.float32 import Float32Module
from ..parts.state import LayerState
from .configuration import HybridLMConfig, refuse_quantised
from .source import check_float16

DONE = "_is_hf_initialized"  # transformers' mark on a tensor or a module that has its values


class CheckpointedBlock(GradientCheckpointingLayer, Block):
    """A block whose forward runs again in the backward once gradient checkpointing is enabled.

    transformers wraps `forward`, and with use_reentrant=True gradients reach only the tensors of a plain tuple: that is
    what it returns, and the call makes `Mixed` of it.
    """

    def __call__(self, x: Tensor, sequences: Context, state: LayerState | None = None, *shared: Tensor) -> Mixed:
        y, losses, stats, *values = super().__call__(x, sequences, state, *shared)
        sums = (value.detach() for value in values[len(losses) :])
        return Mixed(y, dict(zip(losses, values, strict=False)), dict(zip(stats, sums, strict=True)))

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None, *shared: Tensor) -> tuple:  # type: ignore[override]
        """Block's y, the names of its losses and of its statistics, and the values of both."""
        mixed = Block.forward(self, x, sequences, state, *shared)
        return mixed.y, tuple(mixed.losses), tuple(mixed.stats), *mixed.losses.values(), *mixed.stats.values()


class HybridLMPreTrainedModel(PreTrainedModel):
    """What every head has in common: the `HybridLM` as `model`, and transformers' ways with its weights."""

    config_class = HybridLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"model.lm_head.weight": "model.embed.weight"}  # noqa: RUF012  the base class's declaration
    _no_split_modules = ["CheckpointedBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _is_stateful = True  # a recurrent state cannot be wound back, as assisted decoding would need
    _supports_sdpa = True  # what attention layers compute with anyway; `eager` is the same
    _supports_attention_backend = False

    def __init__(self, config: HybridLMConfig):
        super().__init__(config)
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # decays are drawn in float32 and stay so, the others are cast
        try:
            self.model = HybridLM(config.model_config()).to(dtype)
        finally:
            torch.set_default_dtype(dtype)
        if config.tie_word_embeddings:  # by post_init, or once weights are loaded: whether they came is asked of each
            self.model.lm_head.weight = nn.Parameter(self.model.embed.weight.detach())
        for block in self.model.layers():
            block.__class__ = CheckpointedBlock
        self._keep_in_fp32_modules_strict = {
            f"model.{path}.{name}"
            for path, module in self.model.named_modules()
            if isinstance(module, Float32Module)
            for name in module.float32_parameters
        }
        for tensor in self.model.state_dict(keep_vars=True).values():
            if not tensor.is_meta:
                setattr(tensor, DONE, True)  # HybridLM initialises itself
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers' own, but from safetensors alone, and what it would only warn of is an error.

        Raises CheckpointError for a weight that the checkpoint lacks, unless output_loading_info asks for their names;
        ConfigError for a quantisation, a device map with several accelerators, an adapter without peft to apply it, and
        for weights that float16 turns into infinity.
        """
        path = pretrained_model_name_or_path
        refuse_quantised(kwargs.get("quantization_config"))
        if not is_peft_available() and (Path(str(path)) / "adapter_config.json").is_file():
            raise ConfigError(f"{path}: holds an adapter, adapter_config.json, which needs peft; pip install peft")
        kwargs.setdefault("use_safetensors", True)
        model, info = cast(Any, super()).from_pretrained(path, *args, output_loading_info=True, **kwargs)
        missing = sorted(info["missing_keys"] - model.all_tied_weights_keys.keys())
        if missing and not output_loading_info:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(f"{path}: tensor {missing[0]}{more} missing; get the whole checkpoint")
        devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()} - {"cpu", "disk"}
        if len(devices) > 1:
            raise ConfigError(
                f"device_map: spreads the layers over {', '.join(sorted(devices))}, but they share tables of positions "
                'on one device; use device_map={"": 0}, or max_memory with cpu or disk for what does not fit'
            )
        for name, parameter in model.named_parameters():
            check_float16(name, parameter, path)
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Give whatever no checkpoint has filled the values that it has in a new model."""
        made = {
            f"{path}.{name}"
            for path, module in self.model.named_modules()
            if getattr(module, DONE, False)
            for name in module._parameters
        }
        tensors = self.model.state_dict(keep_vars=True).items()
        bare = {name: x for name, x in tensors if not (x.is_meta or getattr(x, DONE, False) or name in made)}
        if not bare:
            return
        new = HybridLM(self.config.model_config()).state_dict()
        for name in bare.keys() & new.keys():  # the others are an adapter's, which initialises itself
            bare[name].copy_(new[name])
            setattr(bare[name], DONE, True)

    def _init_weights(self, module: nn.Module) -> None:
        """For the larger embedding of resize_token_embeddings."""
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=float(self.model.embed.weight.detach().float().std()))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed = cast(nn.Embedding, value)
        self.model.config = self.model.config.model_copy(update={"vocab_size": self.model.embed.num_embeddings})

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # keys and values are not all that there is to remember
