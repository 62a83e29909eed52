"""Gated linear attention: every backend against independent oracles, the recurrence in float64 first."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels import gated_linear_attention, gated_linear_attention_flops, gated_scan
from hybridlm.tests.kernels.adversarial import GATES, assert_exact
from hybridlm.tests.kernels.adversarial import inputs as adversarial
from hybridlm.tests.oracles import assert_close, fla_naive

NAMES = ("q", "k", "v", "g", "initial_state")
FORWARD, BACKWARD = 1e-5, 1e-4
TORCH_BACKENDS = ("reference", "chunked")
KINDS = ("channel", "head", None)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(B=2, T=70, H=2, K=16, V=24, n=None, gate="channel", seed=0):
    """Signed inputs, decays in (0, 1), a non-zero initial state; float64."""
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    g = {"channel": lambda: randn(B, T, H, K), "head": lambda: randn(B, T, H), None: lambda: None}[gate]()
    g = None if g is None else F.logsigmoid(g + 2)
    return [randn(B, T, H, K), randn(B, T, H, K), randn(B, T, H, V), g, randn(n or B, H, K, V)]


def leaves_of(inputs, dtype):
    state_dtype = torch.promote_types(dtype, torch.float32)
    return [None if x is None else x.to(dtype if i < 3 else state_dtype).requires_grad_() for i, x in enumerate(inputs)]


def run(inputs, dtype=torch.float64, backend="chunked", **options):
    """o, final state and the gradients of all inputs for fixed random cotangents of both outputs."""
    leaves = leaves_of(inputs, dtype)
    options |= {"initial_state": leaves[4], "output_final_state": True, "backend": backend}
    o, state = gated_linear_attention(*leaves[:4], **options)
    return {"o": o, "state": state} | gradients(leaves, o, state)


def gradients(leaves, o, state):
    rng = torch.Generator().manual_seed(9)
    do, dstate = (torch.randn(x.shape, generator=rng) for x in (o, state))
    given = {f"d{name}": x for name, x in zip(NAMES, leaves, strict=True) if x is not None}
    loss = (o * do).sum() + (state * dstate).sum()
    return dict(zip(given, torch.autograd.grad(loss, list(given.values()), materialize_grads=True), strict=True))


def compare(found, expected, forward=FORWARD, backward=BACKWARD):
    for name, x in expected.items():
        assert_close(found[name], x, forward if name in ("o", "state") else backward, name)


def check(inputs, forward=FORWARD, backward=BACKWARD, dtype=torch.float32, **options):
    compare(run(inputs, dtype, **options), run(inputs, backend="reference", **options), forward, backward)


# oracles


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
@pytest.mark.parametrize("gate", ["channel", "head"])
def test_against_flash_linear_attention(backend, gate):
    inputs = make(T=100, gate=gate)
    leaves = leaves_of(inputs, torch.float32)
    naive = {
        "channel": lambda: fla_naive("gla").naive_recurrent_gla,
        "head": lambda: fla_naive("simple_gla").naive_recurrent_simple_gla,
    }[gate]()
    o, state = naive(*leaves[:4], initial_state=leaves[4], output_final_state=True)
    expected = {"o": o, "state": state} | gradients(leaves, o, state)
    compare(run(inputs, torch.float32, backend=backend), expected)


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_no_gate_is_linear_attention(backend):
    q, k, v, _, _ = make(gate=None)
    expected = 0.3 * torch.einsum("bthk,bshk,ts,bshv->bthv", q, k, torch.ones(70, 70).tril().double(), v)
    assert_close(gated_linear_attention(q, k, v, None, scale=0.3, backend=backend)[0], expected, 1e-13)
    for zeros in (torch.zeros_like(q), torch.zeros_like(q[..., 0])):
        assert_close(gated_linear_attention(q, k, v, zeros, scale=0.3, backend=backend)[0], expected, 1e-13)


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_full_decay_has_no_memory(backend):
    q, k, v, g, _ = make()
    o, _ = gated_linear_attention(q, k, v, torch.full_like(g, -1e4), scale=1.0, backend=backend)
    assert_close(o, (q * k).sum(-1, keepdim=True) * v, 1e-14)


def test_a_decay_per_head_is_the_same_decay_in_every_channel():
    q, k, v, g, h0 = make(gate="head")
    per_head = run([q, k, v, g, h0])
    per_channel = run([q, k, v, g[..., None].expand_as(q).clone(), h0])
    per_channel["dg"] = per_channel["dg"].sum(-1)
    compare(per_head, per_channel, 1e-13, 1e-13)


def test_retention_equals_its_parallel_form():
    q, k, v, _, _ = make(H=2)
    gamma = 1 - 2.0 ** (-5 - torch.arange(2, dtype=torch.float64))
    t = torch.arange(70)
    decay = gamma[:, None, None] ** (t[:, None] - t).clamp(min=0) * torch.ones(70, 70).tril()
    expected = torch.einsum("bthk,bshk,hts,bshv->bthv", q, k, decay, v) / 4
    assert_close(gated_linear_attention(q, k, v, gamma.log().expand(2, 70, 2))[0], expected, 1e-13)


def test_one_channel_is_a_gated_scan():
    q, k, v, g, _ = make(K=1, V=1)
    o, _ = gated_linear_attention(q, k, v, g, scale=1.0)
    assert_close(o, q * gated_scan(k * v, g)[0], 1e-13)


# shapes


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3), T=st.integers(1, 150), H=st.integers(1, 3), K=st.integers(1, 20), V=st.integers(1, 20),
    gate=st.sampled_from(KINDS), chunk_size=st.sampled_from([16, 32, 64]), recompute=st.booleans(),
)  # fmt: skip
def test_any_shape(B, T, H, K, V, gate, chunk_size, recompute):
    options = {"chunk_size": chunk_size, "recompute": recompute}
    check(make(B, T, H, K, V, gate=gate), dtype=torch.float64, forward=1e-12, backward=1e-12, **options)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 33, 50]), min_size=1, max_size=6),
    gate=st.sampled_from(KINDS),
)
def test_packed_documents_equal_separate_ones(lengths, gate):
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    inputs = make(1, sum(lengths), 2, 5, 7, n=len(lengths), gate=gate)
    for backend in TORCH_BACKENDS:
        packed = run(inputs, backend=backend, cu_seqlens=cu_seqlens, chunk_size=16)
        alone = leaves_of(inputs, torch.float64)
        options = {"output_final_state": True, "chunk_size": 16, "backend": backend}
        parts = [[None] * len(lengths) if x is None else x.split(lengths, 1) for x in alone[:4]]
        pairs = [
            gated_linear_attention(*(x[i] for x in parts), initial_state=alone[4][i : i + 1], **options)
            for i in range(len(lengths))
        ]
        o, state = torch.cat([o for o, _ in pairs], 1), torch.cat([s for _, s in pairs])
        compare(packed, {"o": o, "state": state} | gradients(alone, o, state), 1e-12, 1e-12)
        for i, length in enumerate(lengths):
            if length == 0:
                assert torch.equal(packed["state"][i], inputs[4][i])


@pytest.mark.parametrize("gate", ["channel", "head"])
@pytest.mark.parametrize("T", [1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 129])
def test_lengths_around_the_chunk(T, gate):
    check(make(1, T, gate=gate), chunk_size=32)


def test_many_segments_of_a_long_sequence(monkeypatch):
    from hybridlm.kernels.shared import chunking

    monkeypatch.setattr(chunking, "SEGMENT", 2 * 2 * 16 * 16)
    check(make(1, 200, 2, 8, 8, n=4), cu_seqlens=torch.tensor([0, 90, 90, 91, 200]), chunk_size=16)
    check(make(2, 150, 2, 8, 8), chunk_size=16, recompute=True)


@pytest.mark.parametrize("gate", KINDS)
def test_no_tokens(gate):
    inputs = make(1, 0, n=2, gate=gate)
    found = run(inputs, backend="auto", cu_seqlens=torch.tensor([0, 0, 0]))
    assert found["o"].shape == inputs[2].shape
    assert torch.equal(found["state"], inputs[4])
    _, state = gated_linear_attention(*inputs[:4], output_final_state=True)
    assert torch.equal(state, torch.zeros(1, 2, 16, 24, dtype=torch.float64))


def test_state_carries_over_any_cut():
    *tokens, h0 = make(2, 100)
    o, state = gated_linear_attention(*tokens, initial_state=h0, output_final_state=True)
    for cut in (1, 63, 64, 65, 99):
        h, outputs = h0, []
        for part in (slice(cut), slice(cut, None)):
            parts = [x[:, part] for x in tokens]
            o_part, h = gated_linear_attention(*parts, initial_state=h, output_final_state=True)
            outputs.append(o_part)
        assert_close(torch.cat(outputs, 1), o, 1e-13)
        assert_close(h, state, 1e-13)


# values


@pytest.mark.parametrize("gate", ["channel", "head"])
@pytest.mark.parametrize("g", [0.0, -1e-6, -40.0, -1e4])
def test_extreme_gates(g, gate):
    inputs = make(gate=gate)
    inputs[3] = torch.full_like(inputs[3], g)
    check(inputs)


@pytest.mark.parametrize("gate", ["channel", "head"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("seed, options", [(0, {}), (1, {"chunk_size": 16})])
def test_exact_as_the_recurrence(gates, gate, seed, options):
    arguments = adversarial("gated_linear_attention", gates, gate=gate, seed=seed)
    assert_exact("gated_linear_attention", "chunked", arguments, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate", KINDS)
def test_half_precision(dtype, gate):
    inputs = make(T=130, K=48, V=96, gate=gate)
    inputs[:3] = [x.to(dtype).double() for x in inputs[:3]]
    check(inputs, 1e-2, 1e-2, dtype)
    found = run(inputs, dtype)
    assert (found["o"].dtype, found["state"].dtype, found["dk"].dtype) == (dtype, torch.float32, dtype)


@pytest.mark.parametrize("gate", ["channel", "head"])
def test_long_states_stay_finite(gate):
    q, k, v, g, _ = make(1, 100_000, 1, 4, 4, gate=gate)
    found = gated_linear_attention(*(x.float() for x in (q, k, v, g)), output_final_state=True, backend="chunked")
    expected = gated_linear_attention(q, k, v, g, output_final_state=True, backend="chunked")
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, FORWARD)


# gradients and machinery


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
@pytest.mark.parametrize("gate", ["channel", "head"])
@pytest.mark.parametrize("T, cu_seqlens", [(5, None), (19, [0, 0, 1, 19])])
def test_gradcheck(backend, gate, T, cu_seqlens):
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    inputs = leaves_of(make(1, T, 1, 2, 2, n=None if cu is None else 3, gate=gate), torch.float64)
    options = {"output_final_state": True, "cu_seqlens": cu, "chunk_size": 16, "backend": backend}
    assert gradcheck(lambda *x: gated_linear_attention(*x[:4], initial_state=x[4], **options), inputs)


def test_second_derivatives_are_refused():
    q, k, v, g, _ = make()
    v.requires_grad_()
    o, _ = gated_linear_attention(q, k, v, g, backend="chunked")
    (dv,) = torch.autograd.grad(o.square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dv.sum().backward()


@pytest.mark.parametrize("gate", KINDS)
def test_recomputing_changes_nothing_and_keeps_less(gate):
    inputs = make(gate=gate)
    compare(run(inputs, recompute=True), run(inputs), 0, 0)
    kept = []
    for recompute in (False, True):
        leaves = leaves_of(inputs, torch.float64)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):  # noqa: B023
            gated_linear_attention(*leaves[:4], initial_state=leaves[4], recompute=recompute, backend="chunked")
        kept.append(sum(sizes))
    assert kept[1] < kept[0]


@pytest.mark.parametrize("gate", KINDS)
def test_inputs_are_left_alone_and_need_not_be_contiguous(gate):
    inputs = make(1, 32, gate=gate)
    strided = [
        x if x is None or i == 4 else x.transpose(1, 2).contiguous().transpose(1, 2) for i, x in enumerate(inputs)
    ]
    before = [None if x is None else x.clone() for x in strided]
    compare(run(strided, chunk_size=32), run(inputs, chunk_size=32), 1e-14, 1e-14)
    assert all(a is b or torch.equal(a, b) for a, b in zip(strided, before, strict=True))


def test_autocast_does_not_reach_inside():
    inputs = make()
    expected = run(inputs, torch.float32, recompute=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(inputs, torch.float32, recompute=True)  # backward inside the context too
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


@pytest.mark.parametrize("C", [16, 32, 64])
@pytest.mark.parametrize("gate", KINDS)
def test_declared_flops_are_the_counted_ones(C, gate):
    inputs = [None if x is None else x.float() for x in make(2, 2 * C, 3, 12, 20, gate=gate)]
    with FlopCounterMode(display=False) as counter:
        gated_linear_attention(*inputs[:4], chunk_size=C, backend="chunked")
    assert counter.get_total_flops() == gated_linear_attention_flops(12, 20, C, gate) * 2 * 2 * C * 3


# errors


def edit(index, change):
    inputs = [x.float() for x in make(1, 8)]
    inputs[index] = change(inputs[index])
    return inputs


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (edit(0, lambda q: q[0]), {}, "q and v have 3 and 4 dimensions; allowed: 4, [B, T, H, head_dim]"),
        (edit(1, lambda k: k[:, :4]), {}, "k has shape [1, 4, 2, 16]; allowed: [1, 8, 2, 16], q's [B, T, H, K]"),
        (edit(2, lambda v: v[:, :, :1]), {}, "v has shape [1, 8, 1, 24]; allowed: [1, 8, 2, 24], q's [B, T, H, ...]"),
        (
            edit(3, lambda g: g[..., :1]),
            {},
            "g has shape [1, 8, 2, 1]; allowed: [1, 8, 2, 16], [B, T, H, K], or [B, T, H]",
        ),
        (edit(3, lambda g: g[:, :, 0, 0]), {}, "g has shape [1, 8]; allowed: [1, 8, 2], [B, T, H], or [B, T, H, K]"),
        (edit(3, lambda g: g.half()), {}, "g is torch.float16; allowed: torch.float32 or v's torch.float32"),
        (
            edit(3, lambda g: 0 * g + 0.25),
            {},
            "g has values up to 0.25; allowed: <= 0, it is the log of a decay; "
            "e.g. torch.nn.functional.logsigmoid(g)",
        ),
        (
            edit(0, lambda q: q.double()),
            {},
            "q, k, v are torch.float64, torch.float32, torch.float32; allowed: one floating dtype, cast them to v's",
        ),
        (edit(0, lambda q: q), {"chunk_size": 128}, "chunk_size is 128; allowed: 16, 32, 64"),
        (
            edit(4, lambda s: s[:, :, :4]),
            {},
            "initial_state has shape [1, 2, 4, 24]; allowed: [1, 2, 16, 24], [N, H, K, V]",
        ),
        (
            edit(4, lambda s: s.half()),
            {},
            "initial_state is torch.float16; allowed: torch.float32 for torch.float32 inputs",
        ),
    ],
)  # fmt: skip
def test_errors(inputs, options, message):
    with pytest.raises(ValueError) as error:
        gated_linear_attention(*inputs[:4], initial_state=inputs[4], **options)
    assert str(error.value) == message
