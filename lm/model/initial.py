"""The parts of a new model and the values that they begin with."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..mixers import MIXERS
from ..parts.norm import RMSNorm
from ..parts.shape import ModelShape
from ..recipe.layers import LayerSpec
from .block import Block

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig


def new_parts(config: "BaseModelConfig") -> Iterator[tuple[str, nn.Module | None]]:
    """The parts of a model by name, each made as it is asked for: in this order their constructors draw numbers."""
    specs = config.layer_specs()
    yield "embed", nn.Embedding(config.vocab_size, config.d_model)
    yield "pos_embed", nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
    for i, spec in enumerate(specs):
        yield f"blocks.{i}", Block(spec, config, i)
    yield "shared", nn.ModuleDict(_shared(specs, config.shape))
    yield "norm", RMSNorm(config.d_model, config.norm_eps, config.zero_centered_norms)
    yield "lm_head", nn.Linear(config.d_model, config.vocab_size, bias=False)


def _shared(specs: list[LayerSpec], shape: ModelShape) -> dict[str, nn.Module]:
    """By mixer, in the order of first appearance, what the layers of this mixer share."""
    kinds = dict.fromkeys(spec.mixer for spec in specs)
    modules = {kind: MIXERS[kind].shared([s.options for s in specs if s.mixer == kind], shape) for kind in kinds}
    return {kind: module for kind, module in modules.items() if module is not None}


@torch.no_grad()
def copy_new_parts(model: nn.Module, config: "BaseModelConfig") -> None:
    """Give every parameter and buffer what its constructor gives it. One part exists a second time, on the CPU.

    Raises ValueError for a tensor that no new model has: something was put around a module before.
    """
    with torch.device("cpu"):
        for path, new in new_parts(config):
            values = {} if new is None else dict([*new.named_parameters(), *new.named_buffers()])
            part = getattr(model, path) if "." not in path else model.get_submodule(path)
            for name, tensor in () if part is None else (*part.named_parameters(), *part.named_buffers()):
                if name not in values:
                    raise ValueError(
                        f"init_weights: {path}.{name} is of no new model; initialise it before it is wrapped"
                    )
                _copy(tensor, values[name])


def _copy(tensor: Tensor, value: Tensor) -> None:
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)


@torch.no_grad()
def draw_matrices(model: nn.Module, config: "BaseModelConfig") -> None:
    """Linear layers and embeddings from N(0, s^2), see `HybridLM`; biases 0."""
    std = config.init_std or min(0.04, 0.02 * math.sqrt(512 / config.d_model))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in (module for module in model.modules() if isinstance(module, Block)):
        for projection in (getattr(block.mixer, "o_proj", None), block.ffn and block.ffn.down_proj):
            if projection is not None:
                nn.init.normal_(projection.weight, std=std / math.sqrt(2 * config.n_layers))
