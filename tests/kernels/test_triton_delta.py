"""The gated delta rule's Triton kernels, interpreted, against the recurrence in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.kernels import gated_delta_rule, gated_delta_rule_step
from hybridlm.tests.kernels import adversarial as numerics
from hybridlm.tests.oracles import assert_close

triton = pytest.importorskip("triton")
from hybridlm.kernels.gated_delta import triton_rule  # noqa: E402

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret and not torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1 or a GPU"
)
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
NAMES = ("q", "k", "v", "g", "beta", "initial_state")
HALF = 1e-2  # relative RMS allowed to bfloat16 and float16 inputs


def make(B=1, T=70, H=1, HV=None, K=32, V=32, n=None, seed=0):
    """Unit keys and queries, decays in (-1, 0), beta in (0, 1), a non-zero initial state; float64."""
    HV = HV or H
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    q, k = (F.normalize(randn(B, T, H, K), dim=-1) for _ in range(2))
    g = F.logsigmoid(randn(B, T, HV) + 2)
    return [q, k, randn(B, T, HV, V), g, randn(B, T, HV).sigmoid(), randn(n or B, HV, K, V)]


def run(backend, inputs, dtype, gate_dtype=None, cu_seqlens=None, **options):
    """o, the final state and the gradients of all inputs given, for fixed random cotangents of both outputs."""
    gate_dtype = gate_dtype or torch.promote_types(dtype, torch.float32)
    dtypes = [dtype] * 3 + [gate_dtype] * 2 + [torch.promote_types(dtype, torch.float32)]
    leaves = [None if x is None else x.to(DEVICE, d).requires_grad_() for x, d in zip(inputs, dtypes, strict=True)]
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens, device=DEVICE)
    o, state = rule(leaves, backend, cu_seqlens=cu_seqlens, **options)
    rng = torch.Generator().manual_seed(9)
    do, dstate = (torch.randn(x.shape, generator=rng).to(DEVICE) for x in (o, state))
    given = {name: x for name, x in zip(NAMES, leaves, strict=True) if x is not None}
    grads = torch.autograd.grad((o * do).sum() + (state * dstate).sum(), list(given.values()))
    return {"o": o, "state": state} | {f"d{name}": x for name, x in zip(given, grads, strict=True)}


def rule(inputs, backend, **options):
    *inputs, state = inputs
    return gated_delta_rule(
        *inputs, scale=0.3, initial_state=state, output_final_state=True, backend=backend, **options
    )


def check(inputs, dtype=torch.float32, forward=1e-6, backward=2e-6, **options):
    rounded = [x if x is None or i > 2 else x.to(dtype).double() for i, x in enumerate(inputs)]
    expected = run("reference", rounded, torch.float64, cu_seqlens=options.get("cu_seqlens"))
    found = run("triton", inputs, dtype, **options)
    for name, x in expected.items():
        assert_close(found[name], x, forward if name in ("o", "state") else backward, name)


@settings(max_examples=12, deadline=None)
@given(
    T=st.integers(1, 80), group=st.integers(1, 2), K=st.integers(1, 40), V=st.integers(1, 40),
    chunk_size=st.sampled_from([16, 32, 64]),
)  # fmt: skip
def test_any_shape(T, group, K, V, chunk_size):
    with pytest.MonkeyPatch.context() as patch:  # float32 would always take chunks of 16
        patch.setattr(triton_rule, "FLOAT32_CHUNK", chunk_size)
        check(make(1, T, 1, group, K, V), chunk_size=chunk_size)


def test_batch_of_grouped_heads_with_dims_that_are_no_power_of_two():
    check(make(2, 70, 2, 4, 48, 96))


def test_chunks_of_64_tokens(monkeypatch):
    monkeypatch.setattr(triton_rule, "FLOAT32_CHUNK", 64)
    check(make(T=150, H=1, HV=2), chunk_size=64)


def test_wide_heads():
    check(make(T=40, K=256, V=160))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check(make(T=130, K=64, V=64), dtype, HALF, HALF)
    check(make(T=40, K=16, V=16), dtype, HALF, HALF, gate_dtype=dtype)


def test_bfloat16_grouped_heads():
    check(make(T=100, H=1, HV=3, K=32, V=48), torch.bfloat16, HALF, HALF)


def test_packed_documents_of_any_length():
    bounds = (0, 0, 1, 66, 66, 90, 90)
    check(make(T=90, H=1, HV=2, n=6), cu_seqlens=bounds, chunk_size=32)


def test_packed_documents_equal_separate_ones():
    bounds = (0, 33, 34, 67)
    inputs = make(T=67, n=3)
    packed = run("triton", inputs, torch.float32, cu_seqlens=bounds, chunk_size=32)
    for n, (a, b) in enumerate(itertools.pairwise(bounds)):
        alone = [x[:, a:b] for x in inputs[:5]] + [inputs[5][n : n + 1]]
        with torch.no_grad():
            o, state = rule([x.float().to(DEVICE) for x in alone], "triton", chunk_size=32)
        assert torch.equal(o, packed["o"][:, a:b]) and torch.equal(state[0], packed["state"][n])


def test_without_decay_and_without_initial_state():
    q, k, v, _, beta, _ = make(T=100)
    check([q, k, v, None, beta, None])


@pytest.mark.parametrize("options", [{}, {"chunk_size": 16}, {"cu_seqlens": (0, 40, 40, 70)}])
def test_recompute_gives_the_same_bits(options):
    inputs = make(n=3 if "cu_seqlens" in options else 1)
    kept = run("triton", inputs, torch.float32, **options)
    rebuilt = run("triton", inputs, torch.float32, recompute=True, **options)
    assert all(torch.equal(kept[name], rebuilt[name]) for name in kept)


def adversarial(T=130, K=16, V=16, seed=0):
    """Decays per step from 1e-6 to 1 - 1e-6 mixed, runs of equal keys, beta = 1."""
    inputs = make(T=T, K=K, V=V, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    small = 10 ** (torch.rand(1, T, 1, generator=rng, dtype=torch.float64) * 6 - 6)
    decay = torch.where(torch.rand(1, T, 1, generator=rng) < 0.3, small.clamp(max=1 - 1e-6), 1 - small)
    inputs[1][:, 20:60] = inputs[1][:, 20:21]
    inputs[3], inputs[4] = decay.clamp(1e-6, 1 - 1e-6).log(), torch.ones_like(inputs[4])
    return [x.float().double() for x in inputs]


@pytest.mark.parametrize("seed", range(3))
def test_adversarial_gates_are_as_exact_as_the_recurrence(seed):
    inputs = adversarial(seed=seed)
    expected = run("reference", inputs, torch.float64)
    recurrence = run("reference", inputs, torch.float32)
    found = run("triton", inputs, torch.float32)
    for name, x in expected.items():
        error = lambda y, x=x: ((y.double() - x).square().mean() / x.square().mean()).sqrt()  # noqa: E731
        assert error(found[name]) <= 2 * error(recurrence[name]), name


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="draws its inputs on the CPU")
@pytest.mark.slow
@pytest.mark.parametrize("gates", numerics.GATES)
def test_the_numerical_goal(gates):
    numerics.assert_exact("gated_delta_rule", "triton", numerics.inputs("gated_delta_rule", gates))


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 3e-6), (torch.bfloat16, HALF)])
def test_equal_keys_written_in_full(dtype, bound):
    inputs = make(T=64)
    inputs[1][:] = inputs[1][:, :1].clone()
    inputs[4][:] = 1.0
    check(inputs, dtype, bound, bound)


def test_tokens_that_write_nothing():
    inputs = make()
    inputs[4][:, ::3] = 0.0
    check(inputs)
    check(inputs, torch.float16, HALF, HALF)


def test_gates_that_forget_everything():
    inputs = make()
    inputs[3][:, ::5] = -1000.0
    check(inputs)


def test_non_contiguous_inputs_and_cotangent():
    inputs = [x.float().to(DEVICE) for x in make(B=2, T=20, H=2)]
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    plain = [x.clone().requires_grad_() for x in inputs]
    grads = []
    for leaves in (strided, plain):
        o, _ = rule(leaves, "triton")
        grads.append(torch.autograd.grad(o.sum(), leaves))  # an expanded cotangent, and none of the final state
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_gradient_through_the_final_state_alone():
    leaves = [x.float().to(DEVICE).requires_grad_() for x in make(T=20)]
    grads = [torch.autograd.grad(rule(leaves, backend)[1].sum(), leaves[1:]) for backend in ("triton", "reference")]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("HV, K, V, decay", [(1, 16, 16, True), (4, 48, 80, True), (2, 33, 7, False)])
def test_step(dtype, HV, K, V, decay):
    H = 1 if HV == 1 else 2
    q, k, v, g, beta, state = make(T=3, H=H, HV=HV, K=K, V=V, n=1)
    g = g if decay else None
    q, k, v = (x.to(dtype) for x in (q, k, v))
    exact = [None if x is None else x.double() for x in (q, k, v, g, beta)]
    expected, final = gated_delta_rule(
        *exact, initial_state=state.float().double(), output_final_state=True, backend="reference"
    )
    state = state.float().to(DEVICE)
    for t in range(3):
        gates = [None if x is None else x[:, t].float().to(DEVICE) for x in (g, beta)]
        o = gated_delta_rule_step(*(x[:, t].to(DEVICE) for x in (q, k, v)), *gates, state=state, backend="triton")
        assert_close(o, expected[:, t], 1e-6 if dtype == torch.float32 else HALF)
    assert_close(state, final, 1e-6)


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r'backend "triton" got torch\.float64.*backend="chunked"'):
        rule([x.to(DEVICE) for x in make(T=4)], "triton")
    with pytest.raises(ValueError, match="head dim K=257; allowed: 1 to 256"):
        rule([x.float().to(DEVICE) for x in make(T=4, K=257)], "triton")
