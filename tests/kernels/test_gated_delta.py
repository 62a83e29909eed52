"""Gated delta rule: every backend against independent oracles, the recurrence in float64 first."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels import gated_delta_rule, gated_delta_rule_flops
from hybridlm.tests.kernels.adversarial import GATES, assert_exact
from hybridlm.tests.kernels.adversarial import inputs as adversarial
from hybridlm.tests.oracles import assert_close, fla_naive
from hybridlm.tools.bench_cases import transformers_fallback

NAMES = ("q", "k", "v", "g", "beta", "initial_state")
FORWARD, BACKWARD = 1e-5, 1e-4


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(B=2, T=70, H=2, HV=None, K=16, V=24, n=None, seed=0):
    """Unit keys and queries, signed values, decays in (-1, 0), beta in (0, 1), a non-zero initial state; float64."""
    HV = HV or H
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    q, k = (F.normalize(randn(B, T, H, K), dim=-1) for _ in range(2))
    g = F.logsigmoid(randn(B, T, HV) + 2)
    return [q, k, randn(B, T, HV, V), g, randn(B, T, HV).sigmoid(), randn(n or B, HV, K, V)]


def run(inputs, dtype=torch.float64, backend="chunked", **options):
    """o, final state and the gradients of all six inputs for fixed random cotangents of both outputs."""
    gate_dtype = dtype if dtype == torch.float64 else torch.float32
    leaves = [x.to(dtype if i < 3 else gate_dtype).requires_grad_() for i, x in enumerate(inputs)]
    o, state = gated_delta_rule(
        *leaves[:5], initial_state=leaves[5], output_final_state=True, backend=backend, **options
    )
    return {"o": o, "state": state} | gradients(leaves, o, state)


def gradients(leaves, o, state):
    rng = torch.Generator().manual_seed(9)
    do, dstate = (torch.randn(x.shape, generator=rng) for x in (o, state))
    loss = (o * do).sum() + (state * dstate).sum()
    return {f"d{n}": x for n, x in zip(NAMES, torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True)}


def compare(found, expected, forward=FORWARD, backward=BACKWARD):
    for name, x in expected.items():
        assert_close(found[name], x, forward if name in ("o", "state") else backward, name)


def check(inputs, forward=FORWARD, backward=BACKWARD, dtype=torch.float32, **options):
    expected = run(inputs, backend="reference", **options)
    compare(run(inputs, dtype, backend="chunked", **options), expected, forward, backward)


# oracles


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_against_flash_linear_attention(backend):
    inputs = make(T=100)
    leaves = [x.float().requires_grad_() for x in inputs]
    q, k, v, g, beta, h0 = leaves
    naive = fla_naive("gated_delta_rule").naive_recurrent_gated_delta_rule
    o, state = naive(q, k, v, beta, g, initial_state=h0, output_final_state=True)
    compare(run(inputs, torch.float32, backend=backend), {"o": o, "state": state} | gradients(leaves, o, state))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_against_transformers(backend):
    inputs = make(T=130, H=2, HV=4)
    leaves = [x.float().requires_grad_() for x in inputs]
    q, k, v, g, beta, h0 = leaves
    o, state = transformers_fallback()(q, k, v, g, beta, initial_state=h0, output_final_state=True)
    compare(run(inputs, torch.float32, backend=backend), {"o": o, "state": state} | gradients(leaves, o, state))


def test_reference_is_the_written_recurrence():
    q, k, v, g, beta, h0 = make(1, 5, 1)
    outputs = []
    state = h0[0, 0]
    for t in range(5):
        eye = torch.eye(q.shape[-1], dtype=q.dtype)
        transition = g[0, t, 0].exp() * (eye - beta[0, t, 0] * torch.outer(k[0, t, 0], k[0, t, 0]))
        state = transition @ state + beta[0, t, 0] * torch.outer(k[0, t, 0], v[0, t, 0])
        outputs.append(0.3 * state.T @ q[0, t, 0])
    options = {"scale": 0.3, "initial_state": h0, "output_final_state": True, "backend": "reference"}
    o, final = gated_delta_rule(q, k, v, g, beta, **options)
    assert_close(o[0, :, 0], torch.stack(outputs), 1e-14)
    assert_close(final[0, 0], state, 1e-14)


# shapes


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3), T=st.integers(1, 150), H=st.integers(1, 3), group=st.integers(1, 3),
    K=st.integers(1, 20), V=st.integers(1, 20), chunk_size=st.sampled_from([16, 32, 64]),
    recompute=st.booleans(),
)  # fmt: skip
def test_any_shape(B, T, H, group, K, V, chunk_size, recompute):
    options = {"chunk_size": chunk_size, "recompute": recompute}
    check(make(B, T, H, H * group, K, V), dtype=torch.float64, forward=1e-12, backward=1e-11, **options)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 33, 50]), min_size=1, max_size=6),
    group=st.integers(1, 2),
)
def test_packed_documents_equal_separate_ones(lengths, group):
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    *tokens, h0 = make(1, sum(lengths), 2, 2 * group, 5, 7, n=len(lengths))
    for backend in ("reference", "chunked"):
        options = {"output_final_state": True, "chunk_size": 16, "backend": backend}
        leaves = [x.clone().requires_grad_() for x in (*tokens, h0)]
        o, state = gated_delta_rule(*leaves[:5], initial_state=leaves[5], cu_seqlens=cu_seqlens, **options)
        packed = gradients(leaves, o, state)
        alone = [x.clone().requires_grad_() for x in (*tokens, h0)]
        parts = [x.split(lengths, dim=1) for x in alone[:5]]
        pairs = [
            gated_delta_rule(*(x[i] for x in parts), initial_state=alone[5][i : i + 1], **options)
            for i in range(len(lengths))
        ]
        o_alone, state_alone = torch.cat([o for o, _ in pairs], 1), torch.cat([s for _, s in pairs])
        expected = {"o": o_alone, "state": state_alone} | gradients(alone, o_alone, state_alone)
        compare({"o": o, "state": state} | packed, expected, 1e-12, 1e-11)
        for i, length in enumerate(lengths):
            if length == 0:
                assert torch.equal(state[i], h0[i])


@pytest.mark.parametrize("T", [1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 127, 129, 200])
def test_lengths_around_the_chunk(T):
    check(make(1, T), chunk_size=32)


def test_many_segments_of_a_long_sequence(monkeypatch):
    from hybridlm.kernels.shared import chunking

    monkeypatch.setattr(chunking, "SEGMENT", 2 * 2 * 16 * 16)
    inputs = make(1, 200, 2, 2, 8, 8, n=4)
    check(inputs, cu_seqlens=torch.tensor([0, 90, 90, 91, 200]), chunk_size=16)
    check(make(2, 150, 2, 2, 8, 8), chunk_size=16)


def test_no_tokens():
    q, k, v, g, beta, h0 = make(1, 0, n=2)
    for backend in ("reference", "chunked"):
        options = {"initial_state": h0, "output_final_state": True, "backend": backend}
        o, state = gated_delta_rule(q, k, v, g, beta, cu_seqlens=torch.tensor([0, 0, 0]), **options)
        assert o.shape == v.shape
        assert torch.equal(state, h0)


def test_state_carries_over_any_cut():
    q, k, v, g, beta, h0 = make(2, 100)
    o, state = gated_delta_rule(q, k, v, g, beta, initial_state=h0, output_final_state=True)
    for cut in (1, 63, 64, 65, 99):
        left, h = gated_delta_rule(*(x[:, :cut] for x in (q, k, v, g, beta)), initial_state=h0, output_final_state=True)
        right, h = gated_delta_rule(*(x[:, cut:] for x in (q, k, v, g, beta)), initial_state=h, output_final_state=True)
        assert_close(torch.cat([left, right], 1), o, 1e-13)
        assert_close(h, state, 1e-13)


# values


def with_values(g=None, beta=None, **shape):
    inputs = make(**shape)
    for i, value in ((3, g), (4, beta)):
        if value is not None:
            inputs[i] = torch.full_like(inputs[i], value)
    return inputs


@pytest.mark.parametrize("beta", [None, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("g", [0.0, -1e-6, -30.0, -1e4])
def test_extreme_gates(g, beta):
    check(with_values(g, beta))


def test_decay_bursts_keep_later_decays_exact():
    inputs = make(T=128)
    inputs[3][:, ::3] = -30.0  # sums reach -1300, where float32 differences are off by 1e-4
    inputs[3][:, 1::3] = -0.01
    check(inputs)


def test_zero_beta_among_others_gets_its_gradient():
    inputs = make()
    inputs[4][:, ::4] = 0
    check(inputs)


def test_equal_keys_in_a_row():
    inputs = make(T=128)
    inputs[1][:] = inputs[1][:, :1]
    inputs[4][:, :64] = 1.0
    check(inputs)


def test_repeated_write_to_a_key_returns_the_last_value():
    k = F.normalize(torch.randn(1, 1, 1, 8), dim=-1).expand(1, 40, 1, 8)
    v = torch.randn(1, 40, 1, 8)
    o, _ = gated_delta_rule(k, k, v, None, torch.ones(1, 40, 1), scale=1.0)
    assert_close(o, v, 1e-5)


def test_no_gate_is_a_gate_of_zero():
    q, k, v, g, beta, h0 = make()
    for backend in ("reference", "chunked"):
        o, _ = gated_delta_rule(q, k, v, None, beta, initial_state=h0, backend=backend)
        expected, _ = gated_delta_rule(q, k, v, 0 * g, beta, initial_state=h0, backend=backend)
        assert torch.equal(o, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [{"T": 256, "K": 48, "V": 96}, {"T": 130, "HV": 4}])
def test_half_precision(dtype, shape):
    inputs = make(**shape)
    inputs[:3] = [x.to(dtype).double() for x in inputs[:3]]
    check(inputs, 1e-2, 1e-2, dtype)


def test_output_and_state_dtypes():
    for dtype, state_dtype in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        q, k, v, g, beta, _ = (x.to(dtype) for x in make())
        o, state = gated_delta_rule(q, k, v, g, beta, output_final_state=True)
        assert (o.dtype, state.dtype) == (dtype, state_dtype)
        assert gated_delta_rule(q, k, v, g, beta)[1] is None


def test_long_states_stay_finite():
    q, k, v, _, beta, _ = (x.float() for x in make(1, 20_000, 1, K=8, V=8))
    _, state = gated_delta_rule(q, k, v, None, 2 * beta, output_final_state=True, backend="chunked")
    _, expected = gated_delta_rule(q.double(), k.double(), v.double(), None, 2 * beta.double(), output_final_state=True)
    assert_close(state, expected, FORWARD)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("seed, options", [(0, {}), (1, {"chunk_size": 16})])
def test_exact_as_the_recurrence(gates, seed, options):
    assert_exact("gated_delta_rule", "chunked", adversarial("gated_delta_rule", gates, HV=32, seed=seed), **options)


# limit cases


def test_orthonormal_keys_are_recalled_exactly():
    k = torch.eye(8)[None, :, None]  # [1, 8, 1, 8]
    v = torch.randn(1, 8, 1, 5)
    _, state = gated_delta_rule(k, k, v, None, torch.ones(1, 8, 1), output_final_state=True)
    assert_close(state[0, 0], v[0, :, 0], 1e-6)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_full_decay_and_full_writes_remember_nothing_else(backend):
    q, k, v, g, beta, _ = make()
    o, _ = gated_delta_rule(q, k, v, torch.full_like(g, -1e4), torch.ones_like(beta), backend=backend)
    assert_close(o, 16**-0.5 * (q * k).sum(-1, keepdim=True) * v, 1e-14)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_beta_of_two_reflects_the_state(backend):
    k = F.normalize(torch.randn(1, 1, 1, 8, dtype=torch.float64), dim=-1)
    h0 = torch.randn(1, 1, 8, 5, dtype=torch.float64)
    two = torch.full((1, 1, 1), 2.0, dtype=torch.float64)
    options = {"initial_state": h0, "output_final_state": True, "backend": backend}
    _, state = gated_delta_rule(k, k, torch.zeros(1, 1, 1, 5).double(), None, two, **options)
    assert_close(k[0, 0] @ state[0, 0], -k[0, 0] @ h0[0, 0], 1e-14)


def test_no_writes_leave_nothing():
    q, k, v, g, beta, _ = make()
    for backend in ("reference", "chunked"):
        assert gated_delta_rule(q, k, v, g, 0 * beta, backend=backend)[0].abs().max() < 1e-20


# gradients and machinery


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("T, cu_seqlens", [(6, None), (19, [0, 0, 1, 19])])
def test_gradcheck(backend, T, cu_seqlens):
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    inputs = [x.requires_grad_() for x in make(1, T, 1, 2, 3, 2, n=None if cu is None else 3)]
    options = {"output_final_state": True, "cu_seqlens": cu, "chunk_size": 16, "backend": backend}
    assert gradcheck(lambda *x: gated_delta_rule(*x[:5], initial_state=x[5], **options), inputs)


def test_second_derivatives_are_refused():
    q, k, v, g, beta, _ = make()
    v.requires_grad_()
    (dv,) = torch.autograd.grad(
        gated_delta_rule(q, k, v, g, beta, backend="chunked")[0].square().sum(), v, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dv.sum().backward()


def test_only_some_inputs_need_gradients():
    inputs = make()
    expected = run(inputs)
    v = inputs[2].requires_grad_()
    o, state = gated_delta_rule(*inputs[:5], initial_state=inputs[5], output_final_state=True, backend="chunked")
    rng = torch.Generator().manual_seed(9)
    do, dstate = (torch.randn(x.shape, generator=rng) for x in (o, state))
    ((o * do).sum() + (state * dstate).sum()).backward()
    assert torch.equal(v.grad, expected["dv"])


def test_recomputing_changes_nothing_and_keeps_less():
    inputs = make()
    compare(run(inputs, recompute=True, backend="chunked"), run(inputs, backend="chunked"), 0, 0)
    kept = []
    for recompute in (False, True):
        leaves = [x.clone().requires_grad_() for x in inputs]
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.numel()) or x, lambda x: x):  # noqa: B023
            gated_delta_rule(*leaves[:5], initial_state=leaves[5], recompute=recompute, backend="chunked")
        kept.append(sum(shapes))
    assert kept[1] == sum(x.numel() for x in inputs) < kept[0]


def test_inputs_that_are_not_contiguous():
    inputs = make()
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) if i < 5 else x for i, x in enumerate(inputs)]
    assert not strided[0].is_contiguous()
    compare(run(strided), run(inputs), 1e-14, 1e-14)


@pytest.mark.parametrize("B, T", [(1, 32), (2, 50)])
def test_inputs_are_left_alone(B, T):
    inputs = make(B, T, 1)
    before = [x.clone() for x in inputs]
    run(inputs, chunk_size=32)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(use_reentrant):
    inputs = make()
    expected = run(inputs)
    leaves = [x.requires_grad_() for x in inputs]
    call = lambda *x: gated_delta_rule(*x[:5], initial_state=x[5], output_final_state=True, backend="chunked")  # noqa: E731
    o, state = checkpoint(call, *leaves, use_reentrant=use_reentrant)
    rng = torch.Generator().manual_seed(9)
    do, dstate = (torch.randn(x.shape, generator=rng) for x in (o, state))
    ((o * do).sum() + (state * dstate).sum()).backward()
    for name, x in zip(NAMES, leaves, strict=True):
        assert torch.equal(x.grad, expected[f"d{name}"])


def test_autocast_does_not_reach_inside():
    inputs = make(T=100)
    expected = run(inputs, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(inputs, torch.float32)  # backward inside the context too
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


@pytest.mark.parametrize("C", [16, 32, 64])
@pytest.mark.parametrize("H, HV", [(2, 2), (1, 3)])
def test_declared_flops_are_the_counted_ones(C, H, HV):
    q, k, v, g, beta, _ = (x.float() for x in make(2, 2 * C, H, HV, 12, 20))
    with FlopCounterMode(display=False) as counter:
        gated_delta_rule(q, k, v, g, beta, chunk_size=C, backend="chunked")
    assert counter.get_total_flops() == gated_delta_rule_flops(12, 20, C, HV // H) * 2 * 2 * C * HV
