"""Small models behind transformers' interface."""

import torch

from hybridlm.lm import HybridLM
from hybridlm.lm.hf.configuration import HybridLMConfig
from hybridlm.lm.hf.modeling import HybridLMForCausalLM
from hybridlm.tests.hf.helpers import build

MIX = ["gated_deltanet", "attention", "hgrn2"]
NO_END = {"eos_token_id": None, "pad_token_id": 0}


def wrap(model: HybridLM) -> HybridLMForCausalLM:
    """`model` in transformers' clothes, the weights copied."""
    wrapped = HybridLMForCausalLM(HybridLMConfig.of(model.config)).to(model.embed.weight.dtype).eval()
    wrapped.model.load_state_dict(model.state_dict())
    return wrapped


def small(pattern: list[str] = MIX, **options) -> HybridLMForCausalLM:
    """A random model of a few layers."""
    return wrap(build(pattern=pattern, **options))


def left_padded(ids: torch.Tensor, pads: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i of ids [B, T] with the first pads[i] tokens replaced by padding, and the mask."""
    mask = (torch.arange(ids.shape[1]) >= torch.tensor(pads)[:, None]).long()
    return ids * mask, mask
