"""Gated short convolution: BaseConv with a kernel of few tokens (Arora et al. 2023, arXiv 2312.04927).

y_t = (W x_t + b) * (sum_j h_j * x_{t-j} + c) + x_t,  j = 0 .. conv_size - 1,  * and the taps h_j per channel

It compares a token with its neighbours and no others: the first layer of Zoology's recall models, where it does what
the short convolutions of larger mixers do. There is no activation; the model's initialisation makes W x small, so
that the layer starts close to x.
"""

from pydantic import Field

from ..parts.shape import ModelShape
from .options import MixerConfig


class GatedConvConfig(MixerConfig):
    """As wide as the model: d_model^2 parameters."""

    conv_size: int = Field(default=3, gt=0, le=1024)


import math

import torch
from torch import Tensor, nn

from ..parts.context import Context
from ..parts.state import LayerState
from .base import Mixed
from .recurrent import RecurrentMixer, conv_kernel


class GatedConv(RecurrentMixer):
    """See the module's equation. The state is the last conv_size - 1 inputs, and no memory besides."""

    Config = GatedConvConfig
    memory_shape = None
    float32_parameters = ("gate_bias", "conv_bias")

    def __init__(self, options: GatedConvConfig, shape: ModelShape, index: int):
        super().__init__(options, shape, index)
        self.gate_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)
        self.gate_bias = nn.Parameter(torch.zeros(shape.d_model))
        self.conv = conv_kernel(shape.d_model, options.conv_size)
        self.conv_bias = nn.Parameter(torch.empty(shape.d_model).uniform_(-1, 1) / math.sqrt(options.conv_size))

    def forward(self, x: Tensor, sequences: Context, state: LayerState | None = None) -> Mixed:
        gate = self.gate_proj(x) + self.gate_bias.to(x.dtype)
        convolved = self.convolve(x, sequences, state, activation=None) + self.conv_bias.to(x.dtype)
        return Mixed(gate * convolved + x)

    def memory_flops(self) -> float:
        return 0.0
