"""Short convolution against nn.Conv1d's functional form, one document at a time."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from hybridlm.kernels import short_conv, short_conv_step
from hybridlm.tests.oracles import assert_close


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(B=1, T=9, D=5, W=4, n=None, dtype=torch.float64):
    rng = torch.Generator().manual_seed(T)
    shapes = (B, T, D), (D, W), (n or B, W - 1, D)
    return [torch.randn(shape, generator=rng, dtype=dtype).requires_grad_() for shape in shapes]


def conv1d(x, weight, state, activation):
    """[T, D], [W-1, D] -> [T, D] by the library's own convolution."""
    y = F.conv1d(torch.cat([state, x]).T, weight[:, None], groups=len(weight)).T if len(x) else x
    return F.silu(y) if activation else y


def grads(outputs, inputs):
    rng = torch.Generator().manual_seed(5)
    loss = sum((y * torch.randn(y.shape, generator=rng)).sum() for y in outputs)
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    W=st.integers(1, 5), activation=st.sampled_from(["silu", None]),
)  # fmt: skip
def test_packed_documents_against_conv1d(lengths, W, activation):
    inputs = x, weight, state = make(1, sum(lengths), 3, W, len(lengths))
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    options = {"activation": activation, "initial_state": state, "cu_seqlens": cu_seqlens, "output_final_state": True}
    y, final = short_conv(x, weight, **options)
    parts = list(zip(x[0].split(lengths), state, strict=True))
    expected = torch.cat([conv1d(d, weight, s, activation) for d, s in parts])[None]
    expected_final = torch.stack([torch.cat([s, d])[len(d) :] for d, s in parts])
    for a, b in zip((y, final), (expected, expected_final), strict=True):
        assert_close(a, b, 1e-12)
    for a, b in zip(grads((y, final), inputs), grads((expected, expected_final), inputs), strict=True):
        assert_close(a, b, 1e-12)


@settings(max_examples=30, deadline=None)
@given(B=st.integers(1, 3), T=st.integers(0, 600), W=st.integers(1, 4), activation=st.sampled_from(["silu", None]))
def test_rows_against_conv1d(B, T, W, activation):
    inputs = x, weight, state = make(B, T, 3, W)
    y, final = short_conv(x, weight, activation=activation, initial_state=state, output_final_state=True)
    expected = torch.stack([conv1d(a, weight, s, activation) for a, s in zip(x, state, strict=True)])
    assert_close(y, expected, 1e-12)
    for a, b in zip(grads((y, final), inputs), grads((expected, torch.cat([state, x], 1)[:, T:]), inputs), strict=True):
        assert_close(a, b, 1e-12)


def test_last_weight_meets_the_current_token_and_the_start_sees_zeros():
    x = torch.tensor([[[1.0], [10.0], [100.0]]])
    y, state = short_conv(x, torch.tensor([[5.0, 3.0, 2.0]]), activation=None)
    assert y.flatten().tolist() == [2.0, 23.0, 235.0]
    assert state is None


def test_token_by_token_equals_the_whole():
    x, weight, state = make(2, 11)
    whole, last = short_conv(x, weight, initial_state=state, output_final_state=True)
    steps = []
    for t in range(11):
        y, state = short_conv(x[:, t : t + 1], weight, initial_state=state, output_final_state=True)
        steps.append(y)
    assert_close(torch.cat(steps, 1), whole, 1e-14)
    assert torch.equal(state, last)


@pytest.mark.parametrize("activation", ["silu", None])
def test_gradcheck(activation):
    inputs = make(2, 6, 3)
    call = lambda x, w, s: short_conv(x, w, activation=activation, initial_state=s, output_final_state=True)  # noqa: E731
    assert gradcheck(call, inputs)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_precision(dtype, bound):
    x, weight, _ = make(2, 700, 16)
    x, weight = (a.detach().to(dtype).double().requires_grad_() for a in (x, weight))
    expected, _ = short_conv(x, weight)
    low_x, low_w = (a.detach().to(dtype).requires_grad_() for a in (x, weight))
    y, _ = short_conv(low_x, low_w)
    assert y.dtype == dtype
    assert_close(y, expected, bound)
    for a, b in zip(grads((y,), (low_x, low_w)), grads((expected,), (x, weight)), strict=True):
        assert_close(a, b, bound)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": torch.ones(4, 4)}, "x and weight have shapes [1, 9, 5] and [4, 4]; allowed: [B, T, D] and [D, W]"),
        ({"activation": "relu"}, "activation is 'relu'; allowed: 'silu' or None"),
        (
            {"initial_state": torch.ones(1, 4, 5)},
            "initial_state is torch.float32 [1, 4, 5]; allowed: torch.float32 [1, 3, 5], [N, W-1, D]",
        ),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError) as error:
        short_conv(**{"x": torch.ones(1, 9, 5), "weight": torch.ones(5, 4)} | change)
    assert str(error.value) == message


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize(
    ("W", "dtype", "bound"), [(4, torch.float64, 1e-14), (1, torch.float64, 1e-14), (4, torch.bfloat16, 1e-2)]
)
def test_steps_equal_the_whole_and_update_their_state_in_place(W, dtype, bound, activation):
    x, weight, state = (a.detach() for a in make(3, 9, W=W))
    expected, last = short_conv(x, weight, initial_state=state, activation=activation, output_final_state=True)
    held = state.to(dtype, copy=True)
    steps = [short_conv_step(row.to(dtype), weight, state=held, activation=activation) for row in x.unbind(1)]
    assert {y.dtype for y in steps} == {dtype}
    assert_close(torch.stack(steps, 1), expected, bound)
    assert_close(held, last, bound)


def test_step_errors():
    with pytest.raises(ValueError) as error:
        short_conv_step(torch.ones(2, 5), torch.ones(5, 4), state=torch.ones(1, 3, 5))
    shapes = "[2, 5], [5, 4] and [1, 3, 5]"
    assert str(error.value) == f"x, weight and state have shapes {shapes}; allowed: [N, D], [D, W] and [N, W-1, D]"
    with pytest.raises(ValueError, match="activation is 'relu'; allowed: 'silu' or None"):
        short_conv_step(torch.ones(2, 5), torch.ones(5, 4), state=torch.ones(2, 3, 5), activation="relu")
