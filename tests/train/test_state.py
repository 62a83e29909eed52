"""What a ZeRO stage holds is read and written whole; the resuming tests do so for what is trained."""

from typing import get_args

import pytest
import torch

from hybridlm.lm.recipe.train import TrainConfig
from hybridlm.lm.train.state import STAGES
from hybridlm.tests.train.worker import build_model, train


def test_every_stage_that_a_recipe_can_name_has_its_class():
    assert STAGES.keys() == set(get_args(TrainConfig.model_fields["zero_stage"].annotation))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_parameter_that_is_not_trained_is_exported_and_imported_without_moments(start, stage):
    def half_frozen(seed: int):
        model = build_model(seed)
        model.blocks[0].ffn.down_proj.weight.requires_grad_(False)
        return model

    name = "blocks.0.ffn.down_proj.weight"
    first, second = start(half_frozen(0), zero_stage=stage), start(half_frozen(1), zero_stage=stage)
    before = dict(half_frozen(0).named_parameters())[name]
    train(first, range(2))
    weights, optimizer = first.export_state()
    assert torch.equal(weights[name], before)
    assert f"exp_avg.{name}" not in optimizer and "exp_avg.embed.weight" in optimizer
    second.import_state(weights.__getitem__, optimizer.__getitem__)
    assert torch.equal(second.export_state()[0][name], before)
    assert train(second, range(2, 4)) == train(first, range(2, 4))
