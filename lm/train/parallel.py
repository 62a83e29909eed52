"""What training does to a model from outside: recompute blocks in the backward, compile dense parts. Names stay."""

import functools

from torch.utils.checkpoint import checkpoint

from ..model import HybridLM


def checkpoint_blocks(model: HybridLM) -> None:
    """Keep only each block's input for the backward and run its forward again there."""
    for block in model.layers():
        # on the instance: hooks and state_dict names do not notice. use_reentrant=False is the form ZeRO-3 can follow
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_dense(model: HybridLM) -> None:
    """torch.compile each feed-forward in place; recurrences stay eager, their kernels would break the graph."""
    for block in model.layers():
        if block.ffn is not None:
            block.ffn.compile()
