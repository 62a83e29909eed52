"""Losses and statistics of a mixer count once, however often its forward runs."""

import functools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridlm.lm.mixers import Mixed
from hybridlm.lm.parts.context import Context
from hybridlm.lm.parts.state import LayerState
from hybridlm.tests.contracts.broken import LeakyMemory
from hybridlm.tests.contracts.harness import GRADIENT, assert_same_gradients, gradients, tokens


class Reports(LeakyMemory):
    """Adds a loss that trains its rate and counts its tokens and its calls."""

    calls = 0

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        Reports.calls += 1
        mixed = super().forward(x, sequences, state)
        return mixed._replace(
            losses={"rate": self.log_rate.square().mean()}, stats={"tokens": torch.tensor(x.shape[1])}
        )


def run(model):
    ids = tokens(2, 9)
    Reports.calls = 0
    output = model(ids, labels=ids)
    output.loss.backward()
    return output, gradients(model), Reports.calls


def test_losses_and_statistics_of_recomputed_blocks_count_once(register):
    model = register(Reports)()
    plain, expected, calls = run(model)
    for block in model.layers():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    output, found, calls_again = run(model)
    assert (calls, calls_again) == (2, 4)  # recomputed indeed
    assert torch.equal(output.loss, plain.loss)
    assert torch.equal(output.aux_losses["rate"], sum(m.log_rate.square().mean() for m in model.mixers()))
    assert output.stats == plain.stats == {i: {"tokens": torch.tensor(9)} for i in range(2)}
    assert_same_gradients(found, expected, GRADIENT)
