"""The gated scan: every backend against independent oracles, the recurrence in float64 first."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels import gated_scan
from hybridlm.tests.kernels.adversarial import GATES, assert_exact
from hybridlm.tests.kernels.adversarial import inputs as adversarial
from hybridlm.tests.oracles import assert_close, fla_naive

FORWARD, BACKWARD = 1e-5, 1e-4
TORCH_BACKENDS = ("reference", "chunked")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(B=2, T=70, channels=(12,), n=None, seed=0):
    """Signed inputs, decays in (0, 1), a non-zero initial state; float64."""
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    return [randn(B, T, *channels), F.logsigmoid(randn(B, T, *channels) + 1), randn(n or B, *channels)]


def run(inputs, dtype=torch.float64, **options):
    """h, final state and the gradients of x, g and the initial state for fixed random cotangents."""
    state_dtype = torch.promote_types(dtype, torch.float32)
    leaves = [x.to(dtype if i == 0 else state_dtype).requires_grad_() for i, x in enumerate(inputs)]
    h, state = gated_scan(*leaves[:2], initial_state=leaves[2], output_final_state=True, **options)
    return {"h": h, "state": state} | gradients(leaves, h, state)


def gradients(leaves, h, state):
    rng = torch.Generator().manual_seed(9)
    dh, dstate = (torch.randn(x.shape, generator=rng) for x in (h, state))
    loss = (h * dh).sum() + (state * dstate).sum()
    return dict(
        zip(("dx", "dg", "dinitial_state"), torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True)
    )


def compare(found, expected, forward=FORWARD, backward=BACKWARD):
    for name, x in expected.items():
        assert_close(found[name], x, forward if name in ("h", "state") else backward, name)


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_against_flash_linear_attention(backend):
    inputs = make()
    leaves = [x.float().requires_grad_() for x in inputs]
    h, state = fla_naive("hgrn").naive_recurrent_hgrn(*leaves, output_final_state=True)
    compare(run(inputs, torch.float32, backend=backend), {"h": h, "state": state} | gradients(leaves, h, state))


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 100),
    channels=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
)
def test_any_shape(B, T, channels):
    inputs = make(B, T, channels)
    compare(run(inputs, backend="chunked"), run(inputs, backend="reference"), 1e-13, 1e-13)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 33, 50]), min_size=1, max_size=6))
def test_packed_documents_equal_separate_ones(lengths):
    x, g, h0 = make(1, sum(lengths), (3,), n=len(lengths))
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    for backend in TORCH_BACKENDS:
        packed = run([x, g, h0], cu_seqlens=cu_seqlens, backend=backend)
        alone = [leaf.clone().requires_grad_() for leaf in (x, g, h0)]
        parts = zip(alone[0].split(lengths, 1), alone[1].split(lengths, 1), alone[2].split(1), strict=True)
        options = {"output_final_state": True, "backend": backend}
        pairs = [gated_scan(x, g, initial_state=h0, **options) for x, g, h0 in parts]
        h, state = torch.cat([h for h, _ in pairs], 1), torch.cat([s for _, s in pairs])
        compare(packed, {"h": h, "state": state} | gradients(alone, h, state), 1e-13, 1e-13)
        for i, length in enumerate(lengths):
            if length == 0:
                assert torch.equal(packed["state"][i], h0[i])


def test_state_carries_over_any_cut():
    x, g, h0 = make(2, 40)
    h, state = gated_scan(x, g, initial_state=h0, output_final_state=True)
    for cut in (1, 15, 16, 17, 39):
        left, between = gated_scan(x[:, :cut], g[:, :cut], initial_state=h0, output_final_state=True)
        right, end = gated_scan(x[:, cut:], g[:, cut:], initial_state=between, output_final_state=True)
        assert_close(torch.cat([left, right], 1), h, 1e-14)
        assert_close(end, state, 1e-14)


# values


def test_no_decay_is_a_sum_and_a_constant_decay_an_average():
    x, g, _ = make()
    assert_close(gated_scan(x, 0 * g)[0], x.cumsum(1), 1e-13)
    f, t = 0.9, torch.arange(70.0, dtype=torch.float64)
    weights = torch.where(t[:, None] >= t, f ** (t[:, None] - t).clamp(min=0), 0)
    average, _ = gated_scan((1 - f) * x, torch.full_like(g, f).log())
    assert_close(average, (1 - f) * torch.einsum("ts,bsd->btd", weights, x), 1e-13)


@pytest.mark.parametrize("g", [-1e-6, -40.0, -1e4])
def test_extreme_gates(g):
    inputs = make()
    inputs[1] = torch.full_like(inputs[1], g)
    compare(run(inputs, torch.float32, backend="chunked"), run(inputs, backend="reference"))


@pytest.mark.parametrize("backend", ["chunked"])
@pytest.mark.parametrize("gates", GATES)
def test_exact_as_the_recurrence(backend, gates):
    assert_exact("gated_scan", backend, adversarial("gated_scan", gates))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    inputs = make(T=256)
    inputs[0] = inputs[0].to(dtype).double()
    found = run(inputs, dtype, backend="chunked")
    assert (found["h"].dtype, found["state"].dtype, found["dx"].dtype) == (dtype, torch.float32, dtype)
    compare(found, run(inputs, backend="reference"), 1e-2, 1e-2)


def test_long_states_stay_finite():
    x, g, _ = make(1, 100_000, (4,))
    g[..., :2] = -1e-6
    found = gated_scan(x.float(), g.float(), output_final_state=True, backend="chunked")
    expected = gated_scan(x, g, output_final_state=True, backend="chunked")
    for a, b in zip(found, expected, strict=True):
        assert_close(a[..., 2:], b[..., 2:], FORWARD)
        assert_close(a[..., :2], b[..., :2], 1e-3)  # float32 holds 1 - 1e-6 to 1 % of its distance from 1


# gradients and machinery


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
@pytest.mark.parametrize("T, cu_seqlens", [(5, None), (19, [0, 0, 1, 19])])
def test_gradcheck(backend, T, cu_seqlens):
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    inputs = [x.requires_grad_() for x in make(1, T, (2,), n=None if cu is None else 3)]
    options = {"output_final_state": True, "cu_seqlens": cu, "backend": backend}
    assert gradcheck(lambda x, g, h0: gated_scan(x, g, initial_state=h0, **options), inputs)


def test_no_tokens():
    x, g, h0 = make(1, 0, n=2)
    h, state = gated_scan(x, g, initial_state=h0, output_final_state=True, cu_seqlens=torch.tensor([0, 0, 0]))
    assert h.shape == x.shape
    assert torch.equal(state, h0)
    assert torch.equal(gated_scan(x, g, output_final_state=True)[1], torch.zeros(1, 12, dtype=torch.float64))


def test_inputs_are_left_alone_and_need_not_be_contiguous():
    inputs = make(2, 32)
    strided = [inputs[0].mT.contiguous().mT, inputs[1].mT.contiguous().mT, inputs[2]]
    before = [x.clone() for x in strided]
    compare(run(strided, backend="chunked"), run(inputs, backend="chunked"), 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(strided, before, strict=True))


def test_it_has_no_matmul():
    x, g, _ = make()
    with FlopCounterMode(display=False) as counter:
        gated_scan(x, g, backend="chunked")
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize(
    "x, g, state, message",
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), None, "x has 2 dimensions; allowed: 3 or more, [B, T, ...]"),
        (torch.zeros(1, 2, 3).int(), torch.zeros(1, 2, 3), None, "x are torch.int32; allowed: one floating dtype"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2), None, "g has shape [1, 2]; allowed: [1, 2, 3], x's [B, T, ...]"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).half(), None, "g is torch.float16; allowed: torch.float32 or x's"),
        (torch.zeros(1, 2, 3), torch.ones(1, 2, 3), None, "g has values up to 1; allowed: <= 0, it is the log of a"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(2, 3), "initial_state has shape [2, 3]; allowed: [1"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 3).half(), "initial_state is torch.float16; allo"),
    ],
)
def test_errors(x, g, state, message):
    with pytest.raises(ValueError) as error:
        gated_scan(x, g, initial_state=state)
    assert str(error.value).startswith(message)


def test_nan_gates_pass():
    assert gated_scan(torch.zeros(1, 2, 3), torch.full((1, 2, 3), torch.nan))[0].isnan().all()
