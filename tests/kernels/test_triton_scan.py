"""The gated scan in Triton against the recurrence in float64."""

import os

import pytest
import torch
import torch.nn.functional as F

from hybridlm.kernels import gated_scan, gated_scan_step
from hybridlm.tests.kernels.adversarial import assert_exact, inputs
from hybridlm.tests.oracles import assert_close

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("x", "g", "initial_state")
FORWARD, BACKWARD, HALF = 1e-5, 1e-4, 1e-2
IN_SEGMENTS = 300  # tokens: so few channels are then cut into two segments


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(B=1, T=70, channels=(20,), n=None, seed=0):
    """Signed inputs, decays in (0, 1), a non-zero initial state; float64."""
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64).to(DEVICE)  # noqa: E731
    return randn(B, T, *channels), F.logsigmoid(randn(B, T, *channels) + 1), randn(n or B, *channels)


def run(x, g, initial_state, dtype=torch.float64, cotangents=("h", "state"), **options):
    """h, the final state and the gradients of all inputs for fixed random cotangents."""
    state_dtype = torch.promote_types(dtype, torch.float32)
    leaves = [x.to(dtype), g.to(state_dtype), None if initial_state is None else initial_state.to(state_dtype)]
    given = [leaf.requires_grad_() for leaf in leaves if leaf is not None]
    h, state = gated_scan(*leaves[:2], initial_state=leaves[2], output_final_state=True, **options)
    found = {"h": h, "state": state}
    rng = torch.Generator().manual_seed(9)
    weights = {name: torch.randn(found[name].shape, generator=rng).to(DEVICE) for name in cotangents}
    loss = sum((found[name] * weight).sum() for name, weight in weights.items())
    gradients = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
    return found | {f"d{name}": gradient for name, gradient in zip(NAMES, gradients, strict=False)}


def check(arguments, dtype=torch.float32, **options):
    """Triton in dtype against the reference in float64, on inputs rounded to dtype."""
    x, g, initial_state = arguments
    expected = run(x.to(dtype).double(), g, initial_state, backend="reference", **options)
    found = run(x, g, initial_state, dtype, backend="triton", **options)
    for name, value in expected.items():
        bound = HALF if dtype != torch.float32 else FORWARD if name in ("h", "state") else BACKWARD
        assert_close(found[name], value, bound, name)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("T", [70, IN_SEGMENTS])
def test_outputs_and_gradients(T, dtype):
    found = check(make(B=2, T=T), dtype)
    assert found["h"].dtype == dtype and found["state"].dtype == torch.float32


@pytest.mark.parametrize("T", [1, 2, 31, 32, 33, 255, 256, 257])
def test_lengths(T):
    check(make(T=T, channels=(5,)))


@pytest.mark.parametrize("channels", [(1,), (3, 7), (2, 2, 33)])
def test_channels_of_any_shape(channels):
    check(make(T=33, channels=channels))


@pytest.mark.parametrize("lengths", [(0, 1, 31, 0, 32, 33, 0), (0, 280, 1, 0, 150)])
def test_packed_documents(lengths):
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], device=DEVICE)
    arguments = make(T=sum(lengths), n=len(lengths))
    found = check(arguments, cu_seqlens=cu_seqlens)
    empty = cu_seqlens.diff() == 0
    assert torch.equal(found["state"][empty], arguments[2].float()[empty])
    assert found["dinitial_state"][empty].abs().min() > 0


@pytest.mark.parametrize("cotangents", [("h",), ("state",)])
def test_gradients_of_one_output_alone(cotangents):
    check(make(T=40), cotangents=cotangents)


def test_no_initial_state():
    x, g, _ = make(T=IN_SEGMENTS)
    check((x, g, None))


def test_gates_in_half_precision_get_their_gradient_in_it():
    x, g, _ = (value.bfloat16() for value in make())
    leaves = [x.requires_grad_(), g.requires_grad_()]
    gated_scan(*leaves, backend="triton")[0].float().sum().backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    gated_scan(*exact, backend="reference")[0].sum().backward()
    for leaf, expected in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype == torch.bfloat16
        assert_close(leaf.grad, expected.grad, HALF)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="exponentials as interpreted")
@pytest.mark.parametrize("gates", ["mixed", "runs", "weak", "strong"])
def test_adversarial_gates_are_as_exact_as_the_recurrence(gates):
    assert_exact("gated_scan", "triton", inputs("gated_scan", gates, T=IN_SEGMENTS))


@pytest.mark.parametrize("strong", [-40.0, -1e4, -float("inf")])
def test_decays_that_underflow(strong):
    x, g, state = make()
    check((x, torch.full_like(g, strong), state))
    few = torch.rand(g.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    check((x, torch.where(few, strong, -0.1).to(g), state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_follow_the_recurrence(dtype):
    x, g, state = make(B=3, T=4, channels=(5, 70))
    x, g, state, expected = x.to(dtype), g.to(dtype), state.float(), state.float()
    for t in range(4):
        h = gated_scan_step(x[:, t], g[:, t], state=state, backend="triton")
        reference = gated_scan_step(x[:, t], g[:, t], state=expected, backend="reference")
        assert h.dtype == dtype
        assert_close(h, reference, FORWARD if dtype == torch.float32 else HALF)
    assert_close(state, expected, FORWARD)


def test_refusals_say_what_to_do():
    x, g, _ = make(T=3)
    with pytest.raises(ValueError, match=r"float64; allowed: float32, bfloat16, float16.*backend="):
        gated_scan(x, g, backend="triton")
