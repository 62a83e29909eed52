"""H25: an evaluation in the middle of training leaves no trace in it."""

import random

import numpy as np
import pytest
import torch

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.mixers import MIXERS


@pytest.mark.parametrize("layers", ["attention", ", ".join(MIXERS)], ids=["attention", "hybrid"])
def test_h25_losses_with_and_without_evaluation_are_bitwise_equal(layers, tokenizer, requests):
    """Dropout makes the loss depend on the mode and on the random state."""

    def train(evaluate: bool) -> list[float]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        sizes = [
            f"model.n_layers={max(8, len(MIXERS))}",
            "model.d_model=32",
            f"model.vocab_size={tokenizer.vocab_size}",
        ]
        options = ["model.dropout=0.1", "model.attention.dropout=0.1", f"model.pattern=[{layers}]"]
        model = HybridLM(Recipe.load("demo", overrides=[*sizes, *options]).model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for step in range(4):
            ids = torch.randint(0, 97, (2, 20))  # from the global generator
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item(), random.random(), np.random.random()]
            if evaluate and step in (0, 2):
                harness = HybridHarness(model, tokenizer, max_length=48)
                harness.loglikelihood(requests("loglikelihood", [("The value", " of it"), ("The value", " oak")]))
                harness.loglikelihood_rolling(requests("loglikelihood_rolling", [("The value of the valley",)]))
                drawn = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
                harness.generate_until(requests("generate_until", [("The", drawn)]))
        return losses

    assert train(True) == train(False)
