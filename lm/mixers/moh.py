"""MoH: attention in which each token uses some heads, the shared ones and those that its router chooses.

a = 2 softmax(x W_h);  g_i = a_1 S softmax(x W_s)_i for the S shared heads;  g_i = a_2 K softmax(x W_r over the K
largest)_i for the K routed heads in use, 0 for the others;  y = sum_i g_i o_i W_o^i, o_i the attention of head i

Mixture-of-Head attention, Jin et al. 2024 (arXiv 2410.11842, eq. 5 and 6), scaled as in the published code, so that a
new layer is attention with some heads left out. The mixer `attention` with the option `heads`, set.
"""

from typing import ClassVar

from .attention.head_options import HeadsConfig
from .attention.options import AttentionConfig


class MoHConfig(AttentionConfig):
    """Those of attention; a quarter of the heads is shared and three quarters are active. `heads: null` is the twin
    that uses all."""

    section: ClassVar[str] = "moh"
    heads: HeadsConfig | None = HeadsConfig()


from torch import nn

from .attention.attention import Attention


class MoH(Attention):
    """See the module's equations and `attention.heads`."""

    Config = MoHConfig
    router: nn.Parameter
    """Rows W_h, W_s, W_r."""
