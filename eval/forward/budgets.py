"""How many tokens one forward may hold: from the sizes of the model and the memory that is free, without trying."""

from pathlib import Path

import psutil
import torch
from torch import nn

from ...lm.model import HybridLM
from ...lm.parts.errors import ConfigError
from .prefix_tree import DEPTH

SLICE = 1 << 23  # logits that exist at a time: 32 MiB in float32, whatever the vocabulary and the length
SHARE = 0.5  # of the free memory; other processes and the allocator's gaps have the rest
MOST = 1 << 16  # tokens; beyond, a forward is no faster per token
LOGITS = 3 * 4 * SLICE  # bytes: three slices of float32 logits
ACTIVATIONS = 8  # tensors of a layer's width that live at the same time, without gradients
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that a new tensor could have, a container's limit included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return max(free, 0)


def machine_bytes(device: torch.device) -> int:
    """Memory that there is when nothing else runs, a container's limit included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    there, limit = psutil.virtual_memory().total, CGROUP / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        there = min(there, int(most))
    return there


def token_bytes(model: HybridLM) -> int:
    """Bytes of the activations of one token, at most, while a layer runs. Mixers compute in float32 at least."""
    widest = max(layer.out_features for layer in model.blocks.modules() if isinstance(layer, nn.Linear))
    return ACTIVATIONS * (model.config.d_model + widest) * max(4, model.embed.weight.element_size())


def state_tokens(model: HybridLM) -> int:
    """Tokens whose activations are as large as what a sequence's state holds from its first token on."""
    return model.state_bytes(1) // token_bytes(model)


def automatic_batch_tokens(model: HybridLM, max_length: int) -> int:
    """The largest `batch_tokens` whose activations, forked states and logits fit SHARE of the free memory, or MOST.

    Every level of the prefix tree holds a batch's states; the copy that is being continued has room to double. Raises
    ConfigError when not even one sequence of max_length fits.
    """
    growing = model.state_bytes(max_length) - model.state_bytes(1)
    scores = 2 * 4 * max_length  # mask of one query over max_length keys, as bool and as what it is made from
    per_token = token_bytes(model) * (1 + DEPTH) + (DEPTH + 3) * growing / max_length + scores
    room = SHARE * free_bytes(model.device) - LOGITS
    tokens = min(MOST, int(room / per_token))
    if tokens < max_length:
        needed = (max_length * per_token + LOGITS) / SHARE
        raise ConfigError(
            f"batch_tokens: 'auto' finds {free_bytes(model.device) / 1e9:.2f} GB free, and one sequence of "
            f"max_length={max_length} wants {needed / 1e9:.2f}; shorten max_length, free memory, or give a number"
        )
    return tokens
