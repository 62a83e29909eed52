"""The gated convolution against torch's own Conv1d, in the form that Zoology's BaseConv gives it."""

import pytest
import torch
from torch import nn

from hybridlm.lm.mixers.gated_conv import GatedConv
from hybridlm.lm.parts.context import Context
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.tests.oracles import assert_close


@pytest.mark.parametrize("conv_size", [1, 3, 4])
def test_equals_a_gated_conv1d(conv_size):
    torch.manual_seed(0)
    model = ModelConfig(pattern=["gated_conv"], d_model=12, gated_conv={"conv_size": conv_size})
    mixer = GatedConv(model.mixer_options("gated_conv"), model, 0)
    nn.init.normal_(mixer.gate_bias)
    x = torch.randn(3, 9, 12)
    conv = nn.Conv1d(12, 12, conv_size, groups=12, padding=conv_size - 1)
    with torch.no_grad():
        conv.weight.copy_(mixer.conv[:, None])
        conv.bias.copy_(mixer.conv_bias)
        convolved = conv(x.transpose(1, 2))[..., :9].transpose(1, 2)
        expected = convolved * (x @ mixer.gate_proj.weight.T + mixer.gate_bias) + x
        found = mixer(x, Context.dense(3, 9, None, x.device)).y
    assert_close(found, expected, 1e-6, "y")


def test_state_is_the_last_inputs():
    model = ModelConfig(pattern=["gated_conv"], d_model=12)
    mixer = GatedConv(model.mixer_options("gated_conv"), model, 0)
    assert mixer.constant_state
    assert mixer.state_bytes(1000) == 2 * 12 * 4
    assert mixer.new_state(5, torch.bfloat16, torch.device("cpu")).tensors().keys() == {"conv"}
