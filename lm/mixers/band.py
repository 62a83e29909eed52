"""Band: attention to the first tokens of a document, the sink, and to the last ones, the window.

o_t = sum_j softmax_j(q_t k_j / sqrt(D)) v_j over j <= t with t - j < window or j < sink

StreamingLLM, Xiao et al. 2023 (arXiv 2309.17453); MoA, Fu et al. 2024 (arXiv 2406.14909), whose span is sink + window.
The mixer `attention` with the option `mask`, set.
"""

from typing import ClassVar

from .attention.mask_options import MaskConfig
from .attention.options import AttentionConfig


class BandConfig(AttentionConfig):
    """Those of attention; a query sees a quarter of the context. `mask: null` is the twin that sees all."""

    section: ClassVar[str] = "band"
    mask: MaskConfig | None = MaskConfig()


from torch import nn

from .attention.attention import Attention


class Band(Attention):
    """See the module's equation and `attention.visible`."""

    Config = BandConfig
    constant_state = True
    qkv_proj: nn.Linear
    """Rows W_q, W_k, W_v."""
