"""The native CPU backend of every operator against the reference, and what only compiled threads can get wrong."""

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels import (
    gated_delta_rule,
    gated_delta_rule_step,
    gated_linear_attention,
    gated_linear_attention_step,
    gated_scan,
    gated_scan_step,
)
from hybridlm.tests.kernels import adversarial
from hybridlm.tests.oracles import assert_close

OPS = {"delta": gated_delta_rule, "channel": gated_linear_attention, "head": gated_linear_attention}
OPS |= {"ungated": gated_linear_attention, "scan": gated_scan}
STEPS = {"delta": gated_delta_rule_step, "channel": gated_linear_attention_step, "head": gated_linear_attention_step}
STEPS |= {"ungated": gated_linear_attention_step, "scan": gated_scan_step}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BOUNDS = {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}
# One token and head have a single dg, which may cancel from terms 30 times as large: 2 eps of those are 1e-14 of it.
# Shapes that are drawn have so many heads that a gradient's RMS is that of its terms. Single heads have tests below.
HEADS = 8

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(kind, B=2, T=70, H=2, group=1, K=16, V=24, n=None, seed=0):
    """The op's positional arguments and an initial state, float64."""
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    gate = lambda *shape: F.logsigmoid(randn(*shape) + 2)  # noqa: E731
    if kind == "scan":
        return [randn(B, T, H, V), gate(B, T, H, V)], randn(n or B, H, V)
    HV = H * (group if kind == "delta" else 1)
    q, k = (F.normalize(randn(B, T, H, K), dim=-1) for _ in range(2))
    v, state = randn(B, T, HV, V), randn(n or B, HV, K, V)
    if kind == "delta":
        return [q, k, v, gate(B, T, HV), randn(B, T, HV).sigmoid()], state
    g = {"channel": gate(B, T, H, K), "head": gate(B, T, H), "ungated": None}[kind]
    return [q, k, v, g], state


def run(kind, inputs, dtype=torch.float64, **options):
    """Outputs and the gradients of every argument, for fixed random cotangents."""
    arguments, state = inputs
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in arguments]
    state = state.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    o, final = OPS[kind](*leaves, initial_state=state, output_final_state=True, **options)
    rng = torch.Generator().manual_seed(9)
    do, dstate = (torch.randn(x.shape, generator=rng) for x in (o, final))
    given = [x for x in (*leaves, state) if x is not None]
    return [o, final, *torch.autograd.grad((o * do).sum() + (final * dstate).sum(), given)]


def rounded(inputs, dtype):
    arguments, state = inputs
    return [None if x is None else x.to(dtype).double() for x in arguments], state


def check(kind, inputs, dtype=torch.float64, **options):
    chunking = {key: options.pop(key) for key in ("chunk_size", "recompute") if key in options}
    inputs = rounded(inputs, dtype)
    expected = run(kind, inputs, backend="reference", **options)
    for i, (a, b) in enumerate(
        zip(run(kind, inputs, dtype, backend="native", **options, **chunking), expected, strict=True)
    ):
        assert_close(a, b, BOUNDS[dtype], f"result {i}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OPS)
def test_every_dtype(kind, dtype):
    check(kind, make(kind, T=100, K=24, V=40), dtype)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(list(OPS)), dtype=st.sampled_from(DTYPES[:2]),
    B=st.integers(1, 3), T=st.integers(1, 140), H=st.integers(HEADS, HEADS + 2), group=st.integers(1, 3),
    K=st.integers(1, 40), V=st.integers(1, 40),
)  # fmt: skip
def test_any_shape(kind, dtype, B, T, H, group, K, V):
    check(kind, make(kind, B, T, H, group, K, V), dtype)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 63, 64, 65, 129])
@pytest.mark.parametrize("kind", OPS)
def test_lengths_around_chunks_and_segments(kind, T):
    check(kind, make(kind, 1, T, 1, K=8, V=8))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(list(OPS)), group=st.integers(1, 2),
    lengths=st.lists(st.sampled_from([0, 0, 1, 1, 2, 16, 17, 64, 65]), min_size=1, max_size=6).filter(any),
)  # fmt: skip
def test_packed_documents(kind, group, lengths):
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    check(kind, make(kind, 1, sum(lengths), HEADS, group, 5, 7, n=len(lengths)), cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("kind", OPS)
def test_channels_of_many_blocks(kind):
    check(kind, make(kind, 1, 40, 2, K=130, V=300))


@pytest.mark.parametrize("kind", ["delta", "channel", "head", "ungated"])
def test_recompute_keeps_less_and_changes_nothing(kind):
    saved = []
    results = []
    for recompute in (False, True):
        kept = []
        hook = lambda x, kept=kept: kept.append(x.numel()) or x  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(hook, lambda x: x):
            results.append(run(kind, make(kind, T=200), backend="native", recompute=recompute))
        saved.append(sum(kept))
    assert saved[1] < saved[0]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", OPS)
def test_bit_for_bit_across_calls_and_threads(kind):
    inputs = make(kind, 2, 150, 3)
    expected = run(kind, inputs, torch.float32, backend="native")
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        found = run(kind, inputs, torch.float32, backend="native")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_calls_from_several_threads_at_once():
    inputs = make("delta", 2, 100)
    expected = run("delta", inputs, backend="native")
    found = {}
    workers = [
        threading.Thread(target=lambda i=i: found.update({i: run("delta", inputs, backend="native")})) for i in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for i in range(4) for a, b in zip(found[i], expected, strict=True))


@pytest.mark.parametrize("kind", OPS)
def test_no_gradient_no_initial_state(kind):
    arguments, _ = make(kind)
    with torch.no_grad():
        o, _ = OPS[kind](*arguments, backend="native")
        expected, _ = OPS[kind](*arguments, backend="reference")
    assert_close(o, expected, 1e-14)


def test_delta_rule_without_a_gate():
    (q, k, v, _, beta), state = make("delta", group=2)
    results = [
        gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True, backend="native")
        for g in (None, torch.zeros_like(beta))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", OPS)
def test_gradcheck(kind):
    arguments, state = make(kind, 1, 19, 1, 2, 3, 2, n=3)
    leaves = [x.requires_grad_() for x in (*arguments, state) if x is not None]
    options = {"output_final_state": True, "cu_seqlens": torch.tensor([0, 0, 1, 19]), "backend": "native"}
    gate = [None] if kind == "ungated" else []
    assert gradcheck(lambda *x: OPS[kind](*x[:-1], *gate, initial_state=x[-1], **options), leaves)


@pytest.mark.parametrize("kind", OPS)
def test_strided_inputs_are_read_and_left_alone(kind):
    arguments, state = make(kind)
    strided = [None if x is None else x.transpose(1, 2).contiguous().transpose(1, 2) for x in arguments]
    found = run(kind, (strided, state), backend="native")
    assert all(torch.equal(a, b) for a, b in zip(found, run(kind, make(kind), backend="native"), strict=True))
    for x, before in zip((*strided, state), (*make(kind)[0], make(kind)[1]), strict=True):
        assert x is None or torch.equal(x, before)


@pytest.mark.parametrize("kind", OPS)
def test_nan_stays_with_the_tokens_that_may_see_it(kind):
    arguments, state = make(kind, 1, 40)
    clean = run(kind, (arguments, state), backend="native")[0]
    for x in arguments[:3] if kind != "scan" else arguments[:1]:
        x.detach()[:, 21] = torch.nan
    o = run(kind, (arguments, state), backend="native")[0]
    assert torch.equal(o[:, :21], clean[:, :21])
    assert o[:, 21].isnan().all()


def test_denormals_are_flushed_inside_and_only_there():
    inputs = make("delta", 1, 300, 1)
    inputs[0][3].detach().fill_(-1.0)  # the initial state fades through the denormal range
    check("delta", inputs, torch.float32)
    assert torch.tensor([1e-40]).mul(0.5).item() != 0


@pytest.mark.parametrize("gates", adversarial.GATES)
@pytest.mark.parametrize("op", adversarial.OPS)
def test_adversarial_gates(op, gates):
    for gate in ("channel", "head", None) if op == "gated_linear_attention" else ("channel",):
        adversarial.assert_exact(op, "native", adversarial.inputs(op, gates, gate=gate))


# steps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", STEPS)
def test_steps_follow_the_reference(kind, dtype):
    arguments, state = rounded(make(kind, 3, 5, 2, 2, 9, 13), dtype)
    states = [state.clone(), state.to(torch.promote_types(dtype, torch.float32))]
    for t in range(5):
        token = [None if x is None else x[:, t] for x in arguments]
        expected = STEPS[kind](*token, state=states[0], backend="reference")
        low = [None if x is None else x.to(dtype) for x in token]
        found = STEPS[kind](*low, state=states[1], backend="native")
        assert found.dtype == dtype
        assert_close(found, expected, BOUNDS[dtype], "o")
        assert_close(states[1], states[0], min(BOUNDS[dtype], 3e-6), "state")


# FLOPs


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("kind", ["delta", "channel", "head", "ungated"])
def test_flops_are_those_of_the_chunked_form(kind, chunk_size, recompute):
    inputs = make(kind, 2, 128, 2, 2, 12, 20)
    options = {"chunk_size": chunk_size, "recompute": recompute}
    native, chunked = (
        counted(lambda b=b: run(kind, inputs, torch.float32, backend=b, **options)) for b in ("native", "chunked")
    )
    assert native == chunked
