"""The gated delta rule's arguments: what does not fit is refused with one line that says what would."""

import pytest
import torch

from hybridlm.kernels import gated_delta_rule
from hybridlm.tests.kernels.adversarial import inputs as arguments


def edit(index, change):
    inputs = list(arguments("gated_delta_rule", T=8, H=2, K=16, V=24).values())
    inputs[index] = change(inputs[index])
    return inputs


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (edit(0, lambda q: q[0]), {}, "q and v have 3 and 4 dimensions; allowed: 4, [B, T, heads, head_dim]"),
        (edit(1, lambda k: k[:, :4]), {}, "k has shape [1, 4, 2, 16]; allowed: [1, 8, 2, 16], q's [B, T, H, K]"),
        (edit(2, lambda v: v[:, :4]), {}, "v has shape [1, 4, 2, 24]; allowed: [1, 8, 2, 24], q's [B, T, ...]"),
        (
            edit(2, lambda v: v[:, :, [0, 1, 1]]),
            {},
            "v has 3 heads and q has 2; allowed: a positive multiple of q's, value heads share keys",
        ),
        (edit(3, lambda g: g[..., None]), {}, "g has shape [1, 8, 2, 1]; allowed: [1, 8, 2], [B, T, HV]"),
        (edit(4, lambda b: b[..., :1]), {}, "beta has shape [1, 8, 1]; allowed: [1, 8, 2], [B, T, HV]"),
        (
            edit(0, lambda q: q.bfloat16()),
            {},
            "q, k, v are torch.bfloat16, torch.float32, torch.float32; allowed: one floating dtype, cast them to v's",
        ),
        (edit(4, lambda b: b.bfloat16()), {}, "beta is torch.bfloat16; allowed: torch.float32 or v's torch.float32"),
        (edit(0, lambda q: q), {"chunk_size": 128}, "chunk_size is 128; allowed: 16, 32, 64"),
        (
            edit(3, lambda g: 0 * g + 0.5),
            {},
            "g has values up to 0.5; allowed: <= 0, it is the log of a decay; "
            "e.g. torch.nn.functional.logsigmoid(g)",
        ),
        (
            edit(4, lambda b: 0 * b - 1),
            {},
            "beta has values from -1 to -1; allowed: 0 to 2, outside the state grows without bound; "
            "e.g. torch.sigmoid(beta)",
        ),
        (
            edit(4, lambda b: 0 * b + 2.5),
            {},
            "beta has values from 2.5 to 2.5; allowed: 0 to 2, outside the state grows without bound; "
            "e.g. torch.sigmoid(beta)",
        ),
        (
            edit(5, lambda s: s[:, :, :4]),
            {},
            "initial_state has shape [1, 2, 4, 24]; allowed: [1, 2, 16, 24], [N, HV, K, V]",
        ),
        (
            edit(5, lambda s: s.bfloat16()),
            {},
            "initial_state is torch.bfloat16; allowed: torch.float32 for torch.float32 inputs",
        ),
        (
            edit(0, lambda q: q),
            {"backend": "cuda"},
            "backend is 'cuda'; allowed: auto, reference, chunked, native, triton, fla",
        ),
    ],
)  # fmt: skip
def test_errors(inputs, options, message):
    with pytest.raises(ValueError) as error:
        gated_delta_rule(*inputs[:5], initial_state=inputs[5], **options)
    assert str(error.value) == message


def test_nan_gates_pass():
    inputs = edit(3, lambda g: torch.full_like(g, torch.nan))
    assert gated_delta_rule(*inputs[:5], backend="chunked")[0].isnan().any()
