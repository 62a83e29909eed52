"""Banded attention: backends that run here against masked attention in float64, and what only tiles get wrong."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels import banded_attention, banded_attention_flops, head_routed_attention
from hybridlm.kernels.banded_attention.arguments import BandedArguments
from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.tests.oracles import assert_close

BACKENDS = ("reference", "chunked", "native")
BOUNDS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 1e-2)}
NAMES = ("o", "dq", "dk", "dv")
DENSE: dict[str, Any] = {"sink": 0, "window": None}

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(B=2, T=70, H=4, KV=2, D=16, seed=0):
    """q, k, v; float64."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, heads, D, generator=rng, dtype=torch.float64) for heads in (H, KV, KV)]


def masked_sdpa(q, k, v, *, sink, window, cu_seqlens=None):
    """PyTorch's attention under the mask written out: (same document) and j <= t and (t - j < window or j < sink)."""
    B, T, H, _ = q.shape
    KV = k.shape[2]
    bounds = [0, T] if cu_seqlens is None else cu_seqlens.tolist()
    seen = torch.zeros(KV, T, T, dtype=torch.bool)
    sinks, windows = ([x] * KV if isinstance(x, int) else list(x) for x in (sink, T if window is None else window))
    for a, b in itertools.pairwise(bounds):
        for head, t in itertools.product(range(KV), range(a, b)):
            seen[head, t, a : min(a + sinks[head], t + 1)] = True
            seen[head, t, max(a, t - windows[head] + 1) : t + 1] = True
    mask = seen.repeat_interleave(H // KV, 0).expand(B, -1, -1, -1)
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(H // KV, 2), v.repeat_interleave(H // KV, 2)))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


def with_gradients(call, inputs, dtype=torch.float64, do=None):
    """o and the gradients, for a fixed random cotangent."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    o = call(*leaves)
    if do is None:
        do = torch.randn(o.shape, generator=torch.Generator().manual_seed(9))
    return dict(zip(NAMES, (o.detach(), *torch.autograd.grad(o, leaves, do.to(o.dtype))), strict=True))


def run(inputs, dtype=torch.float64, backend="native", do=None, **options):
    return with_gradients(lambda *x: banded_attention(*x, backend=backend, **options), inputs, dtype, do)


def check(inputs, dtype=torch.float64, backend="native", **options):
    inputs = [x.to(dtype).double() for x in inputs]
    expected = with_gradients(lambda *x: masked_sdpa(*x, **options), inputs)
    found = run(inputs, dtype, backend, **options)
    forward, backward = BOUNDS[dtype]
    for name, x in expected.items():
        assert found[name].dtype == dtype
        # one key alone has a softmax of 1: gradients of q and k are 0 and come as rounding
        if x.abs().max() > 1e-9:
            assert_close(found[name], x, forward if name == "o" else backward, name)
        else:
            assert found[name].abs().max() < 1e-6, name


def same(found, expected):
    return all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("H", "KV"), [(1, 1), (2, 2), (6, 2), (7, 1)])
def test_every_dtype_and_group(backend, H, KV, dtype):
    inputs = make(2, 150, H, KV, 24)
    check(inputs, dtype, backend, sink=3, window=40)
    check(inputs, dtype, backend, **DENSE)


@pytest.mark.parametrize("D", [1, 8, 40, 64, 80, 96, 128, 160])
def test_head_dimensions(D):
    check(make(1, 140, 4, 2, D), torch.float32, sink=10, window=70)
    check(make(1, 50, 2, 1, D), sink=1, window=7)


@settings(max_examples=40, deadline=None)
@given(
    backend=st.sampled_from(BACKENDS), B=st.integers(1, 2), T=st.integers(2, 300), KV=st.integers(1, 2),
    group=st.sampled_from([1, 3, 7]), D=st.integers(1, 20), data=st.data(),
)  # fmt: skip
def test_any_sinks_and_windows(backend, B, T, KV, group, D, data):
    sink = data.draw(st.integers(0, 330) | st.lists(st.integers(0, 330), min_size=KV, max_size=KV))
    window = data.draw(st.none() | st.integers(1, 330) | st.lists(st.integers(1, 330), min_size=KV, max_size=KV))
    check(make(B, T, KV * group, KV, D), backend=backend, sink=sink, window=window)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_give_the_numbers_of_each_key_head(backend):
    inputs = make(2, 333, 6, 3)
    check(inputs, backend=backend, window=[333, 40, 3], sink=[0, 5, 130])
    by_tensor = run(inputs, backend=backend, window=torch.tensor([333, 40, 3]), sink=torch.tensor([0, 5, 130]))
    assert same(by_tensor, run(inputs, backend=backend, window=[333, 40, 3], sink=[0, 5, 130]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_sees_everything_is_dense(backend):
    """Windows and sinks as long as the sequence, and longer than any number of tokens."""
    inputs = make(2, 200)
    dense = run(inputs, backend=backend, **DENSE)
    for sink, window in ((7, 200), (200, 1), (9, None), (2**40, 2**40)):
        assert same(run(inputs, backend=backend, sink=sink, window=window), dense)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_of_one_without_a_sink_gives_the_value_itself(backend):
    inputs = make(3, 130, 6, 2)
    found = run(inputs, backend=backend, sink=0, window=1)
    assert_close(found["o"], inputs[2].repeat_interleave(3, 2), 1e-14)
    assert max(found[name].abs().max() for name in ("dq", "dk")) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_token_sees_itself(backend):
    inputs = make(3, 1)
    for sink, window in ((0, None), (4, 2)):
        found = run(inputs, backend=backend, sink=sink, window=window)
        assert_close(found["o"], inputs[2].repeat_interleave(2, 2), 1e-14)


@settings(max_examples=30, deadline=None)
@given(
    backend=st.sampled_from(BACKENDS), group=st.sampled_from([1, 3]), window=st.sampled_from([None, 9, [1, 130]]),
    sink=st.sampled_from([0, 5, 64, [3, 70]]),
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 16, 63, 64, 65, 200]), min_size=1, max_size=6).filter(any),
)  # fmt: skip
def test_packed_documents_have_a_sink_each(backend, group, window, sink, lengths):
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    check(make(1, sum(lengths), 2 * group, 2, 9), backend=backend, cu_seqlens=cu_seqlens, window=window, sink=sink)


def test_packed_documents_are_those_alone_bit_for_bit():
    """Forward; the gradients of keys are sums whose parts follow from all of the work."""
    inputs, bounds = make(1, 300, 6, 2, 16), (0, 0, 5, 130, 300)
    for backend in ("reference", "native"):
        packed = run(inputs, torch.float32, backend, sink=8, window=70, sequences=Sequences(1, 300, bounds))
        for a, b in itertools.pairwise(bounds):
            alone = banded_attention(*(x[:, a:b].float() for x in inputs), sink=8, window=70, backend=backend)
            assert torch.equal(packed["o"][:, a:b], alone)


def test_no_token_at_all():
    for backend in BACKENDS:
        assert banded_attention(*make(2, 0), sink=1, window=2, backend=backend).shape == (2, 0, 4, 16)
        empty = {"cu_seqlens": torch.tensor([0, 0, 0])}
        assert banded_attention(*make(1, 0), sink=1, window=2, backend=backend, **empty).shape == (1, 0, 4, 16)


def test_it_is_head_routed_attention_with_gates_of_one_bit_for_bit():
    inputs = make(2, 300, 6, 2)
    for sink, window in (([3, 0], [70, 9]), (None, None)):
        routed = with_gradients(
            lambda *x, sink=sink, window=window: head_routed_attention(
                *x, torch.ones(2, 300, 6), sink=sink, window=window, backend="native"
            ),
            inputs,
            torch.float32,
        )
        assert same(run(inputs, torch.float32, sink=sink, window=window), routed)


def test_large_scores_and_equal_ones():
    q, k, v = make(1, 200, 2, 1)
    check([2 * q, 2 * k, v], torch.float32, sink=5, window=50)
    check([0 * q, k, v], torch.float32, sink=5, window=50)
    expected = banded_attention(100 * q, 100 * k, v, sink=5, window=50, backend="reference")
    assert_close(banded_attention(100 * q, 100 * k, v, sink=5, window=50, backend="native"), expected, 1e-12)


@pytest.mark.parametrize("shape", [(1, 430, 4, 1, 8), (16, 260, 16, 1, 8), (1, 300, 9, 3, 8)])
def test_bit_for_bit_across_calls_and_threads(shape):
    """Units that are cut into parts, that do not fit one pass, and neither."""
    inputs = make(*shape)
    expected = run(inputs, torch.float32, sink=20, window=130)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same(run(inputs, torch.float32, sink=20, window=130), expected)


def test_views_are_read_in_place_and_left_alone():
    B, T, H, KV, D = 2, 90, 4, 2, 16
    inputs = make(B, T, H, KV, D)
    expected = run(inputs, sink=3, window=20)
    fused = torch.cat([x.flatten(2) for x in inputs], 2)
    before = fused.clone()
    views = [x.unflatten(2, (-1, D)) for x in fused.split([H * D, KV * D, KV * D], 2)]
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    across = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs]
    longer = [torch.cat((x, x), 1)[:, :T] for x in inputs]
    for given_ in (views, by_head, across, longer):
        leaves = [x.detach().requires_grad_() for x in given_]  # as they lie, not copied by .to()
        o = banded_attention(*leaves, sink=3, window=20, backend="native")
        do = torch.randn(o.shape, generator=torch.Generator().manual_seed(9)).to(o.dtype)
        found = (o, *torch.autograd.grad(o, leaves, do))
        assert all(torch.equal(x, y) for x, y in zip(found, expected.values(), strict=True))
    assert torch.equal(fused, before)


# A NaN stays where it is seen


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_key_behind_the_mask_reaches_no_row(value, which):
    """Position 70 with a sink of 5 and a window of 40, and the sink itself for the rows of another document."""
    inputs, t, sink, window = make(1, 200), 70, 5, 40
    clean = run(inputs, sink=sink, window=window)
    inputs[which][:, t] = value
    found = run(inputs, sink=sink, window=window)
    for name in ("o", "dq"):
        for rows in (slice(0, t), slice(t + window, None)):
            assert_close(found[name][:, rows], clean[name][:, rows], 1e-14, name)
        if value != value:
            assert found[name][:, t : t + window].isnan().any(-1).all()
    rows = slice(t + window, None)  # and so the gradients of keys that only clean rows see
    for name in ("dk", "dv"):
        assert_close(found[name][:, rows], clean[name][:, rows], 1e-14, name)


@pytest.mark.parametrize("which", [1, 2])
def test_a_nan_in_the_sink_reaches_every_row_of_its_document_and_no_other(which):
    cu_seqlens = torch.tensor([0, 30, 120, 200])
    inputs = make(1, 200)
    clean = run(inputs, sink=4, window=9, cu_seqlens=cu_seqlens)
    inputs[which][:, 31] = torch.nan
    found = run(inputs, sink=4, window=9, cu_seqlens=cu_seqlens)
    for rows in (slice(0, 30), slice(120, None)):
        assert all(torch.equal(found[name][:, rows], x[:, rows]) for name, x in clean.items())
    assert found["o"][:, 31:120].isnan().any(-1).all() and not found["o"][:, 30].isnan().any()


# Gradients, work, tracing


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_gradcheck(backend):
    leaves = [x.requires_grad_() for x in make(1, 9, 4, 2, 3)]
    options = {"cu_seqlens": torch.tensor([0, 0, 7, 9]), "window": [3, 2], "sink": [1, 0], "backend": backend}
    assert gradcheck(lambda *x: banded_attention(*x, **options), leaves)


@pytest.mark.parametrize(("sink", "window", "most"), [(0, 4096, 1.08), (64, 960, 1.25), (64, 1984, 1.12)])
def test_hardly_more_scores_are_computed_than_the_band_has(sink, window, most):
    from hybridlm.kernels.banded_attention.native import computed_scores

    T, H = 4096, 2
    q, k, v = (x.float() for x in make(1, T, H, H, 8))
    x = BandedArguments.checked(q, k, v, sink=sink, window=window, cu_seqlens=None, sequences=None)
    ideal = H * sum(min(t + 1, sink + window) for t in range(T))
    assert ideal < computed_scores(x) < most * ideal


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_flops_are_those_of_the_pairs_that_are_seen():
    inputs = make(1, 60, 4, 2, 16)
    dense = 60 * 4 * banded_attention_flops(16, sum(range(1, 61)) / 60)
    assert counted(lambda: run(inputs, **DENSE)) == dense * 3.5
    cut = {"cu_seqlens": torch.tensor([0, 20, 60]), "window": [5, 100], "sink": [2, 0]}
    seen = [sum(min(t + 1, 7) for n in (20, 40) for t in range(n)), sum(t + 1 for n in (20, 40) for t in range(n))]
    assert counted(lambda: run(inputs, **cut)) == 3.5 * 4 * 16 * 2 * sum(seen)


@torch.no_grad()
def test_the_pytorch_form_skips_what_is_not_seen():
    """Of 8 blocks of 128 tokens each sees the sink's block, those of its window and its own."""
    q, k, v = (x.float() for x in make(1, 1024, 1, 1, 8))
    blocks = sum(len({0} | {max(i - 2, 0), max(i - 1, 0), i}) for i in range(8))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = counted(lambda: banded_attention(q, k, v, sink=5, window=200, backend="chunked"))
    assert found == banded_attention_flops(8, 128) * 128 * blocks


def test_native_ops_have_results_of_the_right_shape_for_tensors_that_are_none():
    q, k, v = (x.float() for x in make(1, 9))
    ops = torch.ops.hybridlm_native
    o, lse = ops.banded_attention_forward(q, k, v, [], [], [0, 4, 9])
    opcheck(ops.banded_attention_forward, (q, k, v, [], [], [0, 4, 9]), test_utils="test_faketensor")
    backward = (q, k, v, o, lse, o, [1, 2], [3, 4], [0, 4, 9])
    opcheck(ops.banded_attention_backward, backward, test_utils="test_faketensor")


def test_calls_from_several_threads_at_once():
    inputs = make(2, 100)
    expected = run(inputs, sink=3, window=20)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: run(inputs, sink=3, window=20), range(8)))
    assert all(same(x, expected) for x in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sink": -1, "window": 3}, r"sink is -1 for a head; allowed: 0 or more tokens"),
        ({"sink": 0, "window": [3, 0]}, r"window is 0 for a head; allowed: 1 or more tokens"),
        ({"sink": 0, "window": [3]}, r"window has 1 numbers; allowed: 2, one per key head, or one for all"),
        ({"sink": torch.ones(2), "window": 3}, r"sink is torch.float32 of shape \[2\]; allowed: integers"),
        ({"sink": None, "window": 3}, r"sink is None with a window; allowed: a number of tokens, 0 for a window alone"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        banded_attention(*make(), **options)


def test_the_mean_over_a_causal_row_is_what_the_kernels_give():
    """q = 0 makes the softmax a mean over what is seen: by hand."""
    q, k, v = (torch.zeros(1, 6, 1, 1), torch.randn(1, 6, 1, 1), torch.arange(6.0).view(1, 6, 1, 1))
    for backend in BACKENDS:
        o = banded_attention(q, k, v, sink=1, window=2, backend=backend).flatten().tolist()
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(o, [0, 0.5, 1, 5 / 3, 7 / 3, 3], strict=True))
