"""Single-token steps: repeated, they are the operator; bad input is refused."""

import pytest
import torch
import torch.nn.functional as F

from hybridlm.kernels import (
    available_backends,
    gated_delta_rule,
    gated_delta_rule_step,
    gated_linear_attention,
    gated_linear_attention_step,
    gated_scan,
    gated_scan_step,
)
from hybridlm.tests.oracles import assert_close

CPU = torch.device("cpu")


def backends(op):
    return [name for name, reason in available_backends(op, CPU).items() if reason is None] + ["auto"]


def check(op, step, inputs, state, dtype, backend, bound):
    """T steps equal one call of the operator in float64, outputs and state; `state` is updated in place."""
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels take no float64")
    leaves = [None if x is None else x.to(dtype) for x in inputs]
    exact = [None if x is None else x.double() for x in leaves]
    expected, final = op(*exact, initial_state=state.double(), output_final_state=True, backend="reference")
    held = state.to(torch.promote_types(dtype, torch.float32), copy=True)
    pointer = held.data_ptr()
    outputs = []
    for t in range(inputs[0].shape[1]):
        outputs.append(step(*(None if x is None else x[:, t] for x in leaves), state=held, backend=backend))
    assert held.data_ptr() == pointer
    assert outputs[0].dtype == dtype
    assert_close(torch.stack(outputs, 1), expected, bound, "o")
    assert_close(held, final, min(bound, 1e-5), "state")


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float64, 1e-13)]
B, T, H, K, V = 3, 5, 2, 5, 7


@pytest.mark.parametrize("dtype, bound", DTYPES)
@pytest.mark.parametrize("backend", backends("gated_delta_rule_step"))
@pytest.mark.parametrize("gated, HV", [(True, 2), (True, 6), (False, 2)])
def test_gated_delta_rule(backend, gated, HV, dtype, bound):
    q, k = (F.normalize(tokens(B, T, H, K, seed=i), dim=-1) for i in range(2))
    g = F.logsigmoid(tokens(B, T, HV, seed=2)) if gated else None
    inputs = (q, k, tokens(B, T, HV, V, seed=3), g, 2 * tokens(B, T, HV, seed=4).sigmoid())
    check(gated_delta_rule, gated_delta_rule_step, inputs, tokens(B, HV, K, V, seed=5), dtype, backend, bound)


@pytest.mark.parametrize("dtype, bound", DTYPES)
@pytest.mark.parametrize("backend", backends("gated_linear_attention_step"))
@pytest.mark.parametrize("gate", [(H, K), (H,), None])
def test_gated_linear_attention(backend, gate, dtype, bound):
    q, k = (tokens(B, T, H, K, seed=i) for i in range(2))
    g = None if gate is None else F.logsigmoid(tokens(B, T, *gate, seed=2))
    inputs = (q, k, tokens(B, T, H, V, seed=3), g)
    check(
        gated_linear_attention, gated_linear_attention_step, inputs, tokens(B, H, K, V, seed=5), dtype, backend, bound
    )


@pytest.mark.parametrize("dtype, bound", DTYPES)
@pytest.mark.parametrize("backend", backends("gated_scan_step"))
@pytest.mark.parametrize("channels", [(6,), (2, 3)])
def test_gated_scan(backend, channels, dtype, bound):
    inputs = (tokens(B, T, *channels), F.logsigmoid(tokens(B, T, *channels, seed=1)))
    check(gated_scan, gated_scan_step, inputs, tokens(B, *channels, seed=2), dtype, backend, bound)


def test_the_output_is_not_the_state():
    state = torch.zeros(2, 3)
    h = gated_scan_step(torch.ones(2, 3), torch.zeros(2, 3), state=state, backend="reference")
    gated_scan_step(torch.ones(2, 3), torch.zeros(2, 3), state=state, backend="reference")
    assert torch.equal(h, torch.ones(2, 3))


def test_no_autograd():
    x = torch.ones(2, 3, requires_grad=True)
    assert not gated_scan_step(x, torch.zeros(2, 3), state=torch.zeros(2, 3)).requires_grad


# errors

Q, VALUE, GATE, STATE = tokens(B, H, K), tokens(B, H, V), -torch.ones(B, H), torch.zeros(B, H, K, V)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q": Q[0]}, "q and v have 2 and 3 dimensions; allowed: 3, [N, heads, head_dim]"),
        ({"k": Q[:1]}, "k has shape [1, 2, 5]; allowed: [3, 2, 5], q's [N, H, K]"),
        ({"v": VALUE[:1]}, "v has shape [1, 2, 7]; allowed: [3, 2, 7], q's [N, ...]"),
        ({"g": GATE[:1]}, "g has shape [1, 2]; allowed: [3, 2], [N, HV]"),
        ({"beta": GATE.half()}, "beta is torch.float16; allowed: torch.float32 or v's torch.float32"),
        ({"state": STATE[:1]}, "state has shape [1, 2, 5, 7]; allowed: [3, 2, 5, 7], [N, HV, K, V]"),
        ({"state": STATE.half()}, "state is torch.float16; allowed: torch.float32 for torch.float32 inputs"),
        (
            {"state": STATE.mT.contiguous().mT},
            "state is not contiguous; allowed: contiguous, it is updated in place; use state.contiguous()",
        ),
        (
            {"state": STATE.clone().requires_grad_()},
            "state requires grad; allowed: no gradient, a step updates it in place; use state.detach()",
        ),
    ],
)
def test_gated_delta_rule_errors(changes, message):
    arguments = {"q": Q, "k": Q, "v": VALUE, "g": GATE, "beta": -GATE, "state": STATE} | changes
    with pytest.raises(ValueError) as error:
        gated_delta_rule_step(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q": Q[0]}, "q and v have 2 and 3 dimensions; allowed: 3, [N, H, head_dim]"),
        ({"v": VALUE[:, :1]}, "v has shape [3, 1, 7]; allowed: [3, 2, 7], q's [N, H, ...]"),
        ({"g": Q[:1]}, "g has shape [1, 2, 5]; allowed: [3, 2, 5], [N, H, K], or [N, H]"),
        ({"g": GATE[:1]}, "g has shape [1, 2]; allowed: [3, 2], [N, H], or [N, H, K]"),
        ({"state": STATE[:1]}, "state has shape [1, 2, 5, 7]; allowed: [3, 2, 5, 7], [N, H, K, V]"),
    ],
)
def test_gated_linear_attention_errors(changes, message):
    arguments = {"q": Q, "k": Q, "v": VALUE, "g": GATE, "state": STATE} | changes
    with pytest.raises(ValueError) as error:
        gated_linear_attention_step(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": Q[0, 0]}, "x has 1 dimensions; allowed: 2 or more, [N, ...]"),
        ({"g": Q[:1]}, "g has shape [1, 2, 5]; allowed: [3, 2, 5], x's [N, ...]"),
        ({"g": Q.half()}, "g is torch.float16; allowed: torch.float32 or x's torch.float32"),
        ({"state": Q[:1]}, "state has shape [1, 2, 5]; allowed: [3, 2, 5], x's [N, ...]"),
    ],
)
def test_gated_scan_errors(changes, message):
    with pytest.raises(ValueError) as error:
        gated_scan_step(**{"x": Q, "g": Q, "state": Q.clone()} | changes)
    assert str(error.value) == message
