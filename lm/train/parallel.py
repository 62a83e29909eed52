"""What training does to a model from outside, in one place and one order. The model's code mentions none of it."""

import functools
from collections.abc import Callable

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..mixers import Mixer
from ..model import HybridLM
from ..recipe.train import TrainConfig


def apply(model: HybridLM, train: TrainConfig, mark_leaves: Callable[[nn.Module, list[type]], object]) -> None:
    """Change `model` in place as `train` asks; names of parameters stay. mark_leaves: DeepSpeed's for ZeRO-3.

    1. Recompute: a block's forward is run again in the backward. What changes a forward must have done so by now, or
       the second run would do without it: sequence parallelism goes before this.
    2. Compile: a block's dense part, inside the block, so that first and second run take the same compiled code.
    3. Leaf modules: marks on module objects, for the hooks that `deepspeed.initialize` then puts around them. They
       come last, since a step that puts another module in a mixer's place would lose its mark.
    """
    if train.activation_checkpointing:
        _recompute_blocks(model)
    if train.compile:
        _compile_dense(model)
    if train.zero_stage == 3:
        model.hooks_only_gather = True
        mark_leaves(model, [Mixer])  # kernels read the parameters of a mixer's children, so a mixer is gathered whole


def _recompute_blocks(model: HybridLM) -> None:
    """Keep only each block's input for the backward and run its forward again there."""
    for block in model.layers():
        # on the instance: hooks and state_dict names do not notice. use_reentrant=False is the form ZeRO-3 can follow
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _compile_dense(model: HybridLM) -> None:
    """torch.compile each feed-forward in place; packed documents would make a graph of every batch."""
    for block in model.layers():
        if block.ffn is not None:
            block.ffn.compile()
