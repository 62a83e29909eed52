"""Head-routed attention: backends that run here against the definition, and what only compiled tiles get wrong."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.kernels import head_routed_attention, head_routed_attention_flops
from hybridlm.kernels.head_routed_attention.arguments import RoutedArguments
from hybridlm.tests.oracles import assert_close

BACKENDS = ("chunked", "native")
BOUNDS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 1e-2)}
NAMES = ("o", "dq", "dk", "dv", "dgate")

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(B=2, T=70, H=4, KV=2, D=16, active=0.6, seed=0):
    """q, k, v and a gate of which a share is not 0; float64."""
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    gate = randn(B, T, H) * (torch.rand(B, T, H, generator=rng) < active)
    return [randn(B, T, H, D), randn(B, T, KV, D), randn(B, T, KV, D), gate]


def run(inputs, dtype=torch.float64, do=None, **options):
    """o and the gradients, for a fixed random cotangent."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [x.detach().to(wide if i == 3 else dtype).requires_grad_() for i, x in enumerate(inputs)]
    o = head_routed_attention(*leaves, **options)
    if do is None:
        do = torch.randn(o.shape, generator=torch.Generator().manual_seed(9))
    return dict(zip(NAMES, (o.detach(), *torch.autograd.grad(o, leaves, do.to(o.dtype))), strict=True))


def check(inputs, dtype=torch.float64, backend="native", **options):
    inputs = [x if i == 3 else x.to(dtype).double() for i, x in enumerate(inputs)]
    if dtype != torch.float64:
        inputs[3] = inputs[3].float().double()
    expected, found = run(inputs, backend="reference", **options), run(inputs, dtype, backend=backend, **options)
    forward, backward = BOUNDS[dtype]
    for name, x in expected.items():
        assert_close(found[name], x, forward if name == "o" else backward, name)
    inactive = inputs[3] == 0
    assert not found["o"][inactive].any() and not found["dq"][inactive].any() and not found["dgate"][inactive].any()


def same(found, expected):
    return all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("H", "KV"), [(1, 1), (2, 2), (8, 8), (3, 1), (6, 2), (8, 2)])
def test_every_dtype_and_group(backend, H, KV, dtype):
    check(make(2, 150, H, KV, 24), dtype, backend)


@pytest.mark.parametrize("D", [1, 8, 32, 40, 64, 80, 96, 128, 160])
def test_head_dimensions(D):
    check(make(1, 140, 4, 2, D), torch.float32)
    check(make(1, 50, 2, 1, D))


@settings(max_examples=30, deadline=None)
@given(
    backend=st.sampled_from(BACKENDS), B=st.integers(1, 3), T=st.integers(2, 300), KV=st.integers(1, 3),
    group=st.integers(1, 4), D=st.integers(1, 40), active=st.sampled_from([0.1, 0.5, 1.0]),
    sink=st.integers(0, 70), window=st.integers(2, 300) | st.none(),
)  # fmt: skip
def test_any_shape(backend, B, T, KV, group, D, active, sink, window):
    sink = None if window is None else sink
    check(make(B, T, KV * group, KV, D, active), backend=backend, sink=sink, window=window)


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_and_sinks_of_each_key_head(backend):
    inputs = make(2, 333, 6, 3)
    check(inputs, backend=backend, window=[333, 40, 3], sink=[0, 5, 130])
    check(inputs, backend=backend, window=torch.tensor([100, 400, 65]))
    wide = run(inputs, backend=backend, window=333, sink=7)
    assert same(wide, run(inputs, backend=backend)) or backend == "chunked"


@settings(max_examples=25, deadline=None)
@given(
    backend=st.sampled_from(BACKENDS), group=st.sampled_from([1, 3]), window=st.sampled_from([None, 9]),
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 16, 63, 64, 65, 200]), min_size=1, max_size=6).filter(
        lambda x: max(x) > 1
    ),
)  # fmt: skip
def test_packed_documents(backend, group, window, lengths):
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    check(make(1, sum(lengths), 2 * group, 2, 9, 0.7), backend=backend, cu_seqlens=cu_seqlens, window=window)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_and_tokens_without_an_active_head(backend):
    inputs = make(2, 100, 4, 2)
    inputs[3][:, :, 2:] = 0
    inputs[3][:, 10:90] = 0
    check(inputs, backend=backend)
    found = run(inputs, backend=backend)
    assert not found["dk"][:, :, 1].any() and not found["dv"][:, :, 1].any()


@pytest.mark.parametrize("backend", ("reference", *BACKENDS))
def test_nothing_active_is_nothing(backend):
    inputs = make(2, 100, active=0.0)
    assert not any(x.any() for x in run(inputs, backend=backend).values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_token_sees_itself(backend):
    inputs = make(3, 1, 4, 2, active=1.0)
    found = run(inputs, backend=backend)
    assert_close(found["o"], inputs[3][..., None] * inputs[2].repeat_interleave(2, 2), 1e-14)
    assert found["dq"].abs().max() < 1e-14 and found["dk"].abs().max() < 1e-14


def test_all_heads_are_plain_attention():
    q, k, v, gate = make(2, 200, 4, 4)
    o = head_routed_attention(q, k, v, torch.ones_like(gate), backend="native")
    rows = (x.transpose(1, 2) for x in (q, k, v))
    assert_close(o, torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True).transpose(1, 2), 1e-14)


def test_large_scores_and_equal_ones():
    q, k, v, gate = make(1, 200, 2, 1)
    check([2 * q, 2 * k, v, gate], torch.float32)
    check([0 * q, k, v, gate], torch.float32)
    expected = head_routed_attention(100 * q, 100 * k, v, gate, backend="reference")
    assert_close(head_routed_attention(100 * q, 100 * k, v, gate, backend="native"), expected, 1e-12)


@pytest.mark.parametrize("shape", [(1, 430, 4, 1, 8), (16, 260, 16, 1, 8), (1, 300, 9, 3, 8)])
def test_bit_for_bit_across_calls_and_threads(shape):
    """Units that are cut into parts, that do not fit one pass, and neither."""
    inputs = make(*shape, active=1.0)
    expected = run(inputs, torch.float32, backend="native")
    check(inputs, torch.float32)
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        assert same(run(inputs, torch.float32, backend="native"), expected)


def test_views_are_read_in_place_and_left_alone():
    B, T, H, KV, D = 2, 90, 4, 2, 16
    inputs = make(B, T, H, KV, D)
    expected = run(inputs, backend="native")
    fused = torch.cat([x.flatten(2) for x in inputs[:3]], 2)
    before = fused.clone()
    views = [x.unflatten(2, (-1, D)) for x in fused.split([H * D, KV * D, KV * D], 2)]
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:3]]
    across = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs[:3]]
    longer = [torch.cat((x, x), 1)[:, :T] for x in inputs[:3]]
    for given_ in (views, by_head, across, longer):
        leaves = [x.detach().requires_grad_() for x in given_]  # as they lie, not copied by .to()
        gate = inputs[3].clone().requires_grad_()
        o = head_routed_attention(*leaves, gate, backend="native")
        do = torch.randn(o.shape, generator=torch.Generator().manual_seed(9)).to(o.dtype)
        found = (o, *torch.autograd.grad(o, [*leaves, gate], do))
        assert all(torch.equal(x, y) for x, y in zip(found, expected.values(), strict=True))
    assert torch.equal(fused, before)


# A NaN stays where it is seen


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("t", [21, 64, 127])
def test_a_key_that_no_row_may_see_yet_reaches_none(t, value, which):
    inputs = make(1, 128, 4, 2, active=1.0)
    inputs[3][:, t:] = 0
    clean = run(inputs, backend="native")
    inputs[which][:, t] = value
    found = run(inputs, backend="native")
    assert all(x.isfinite().all() for x in found.values())
    for name, x in clean.items():
        assert_close(found[name], x, 1e-14, name)
    assert not found["dk"][:, t:].any() and not found["dv"][:, t:].any()


@pytest.mark.parametrize("which", [1, 2])
def test_rows_before_a_nan_and_behind_its_window_are_clean(which):
    inputs, t, window = make(1, 200, 4, 2, active=1.0), 70, 40
    clean = run(inputs, backend="native", window=window)
    inputs[which][:, t] = torch.nan
    found = run(inputs, backend="native", window=window)
    for name in ("o", "dq"):
        for rows in (slice(0, t), slice(t + window, None)):
            assert_close(found[name][:, rows], clean[name][:, rows], 1e-14, name)
        assert found[name][:, t : t + window].isnan().any(-1).all()
    for name in ("dk", "dv"):
        for rows in (slice(0, t - window + 1), slice(t + window, None)):
            assert_close(found[name][:, rows], clean[name][:, rows], 1e-14, name)


def test_a_query_that_is_nan_reaches_its_own_keys_alone():
    inputs, t = make(1, 130, 4, 2, active=1.0), 70
    clean = run(inputs, backend="native")
    inputs[0][:, t, 0] = torch.nan
    found = run(inputs, backend="native")
    others = torch.arange(130) != t
    for name in ("o", "dq"):
        assert torch.equal(found[name][:, others], clean[name][:, others]) or name == "dq"
        assert_close(found[name][:, others], clean[name][:, others], 1e-14)
        assert_close(found[name][:, :, 1:], clean[name][:, :, 1:], 1e-14)
    for name in ("dk", "dv"):
        assert found[name][:, : t + 1, 0].isnan().any(-1).all()
        assert_close(found[name][:, t + 1 :], clean[name][:, t + 1 :], 1e-14)
        assert_close(found[name][:, :, 1], clean[name][:, :, 1], 1e-14)


def test_inactive_queries_are_not_read():
    inputs = make(1, 130, 4, 2)
    clean = run(inputs, backend="native")
    do = torch.randn(clean["o"].shape, generator=torch.Generator().manual_seed(9))
    inactive = inputs[3] == 0
    inputs[0][inactive], do[inactive] = torch.nan, torch.nan
    assert same(run(inputs, backend="native", do=do), clean)


def test_a_nan_stays_in_its_document():
    cu_seqlens = torch.tensor([0, 30, 71, 130])
    inputs = make(1, 130, 4, 2, active=1.0)
    clean = run(inputs, backend="native", cu_seqlens=cu_seqlens)
    for x in inputs[:3]:
        x[:, 50] = torch.nan
    found = run(inputs, backend="native", cu_seqlens=cu_seqlens)
    for rows in (slice(0, 30), slice(71, None)):
        assert all(torch.equal(found[name][:, rows], x[:, rows]) for name, x in clean.items())


# Gradients, work, tracing


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_gradcheck(backend):
    *tensors, gate = make(1, 7, 4, 2, 3, active=0.5)
    leaves = [x.requires_grad_() for x in tensors]
    options = {"cu_seqlens": torch.tensor([0, 0, 5, 7]), "window": [3, 7], "sink": [1, 0], "backend": backend}
    assert gradcheck(lambda *x: head_routed_attention(*x, gate, **options), leaves)
    whole = (gate + gate.sign() + (gate == 0)).requires_grad_()  # a gate that is 0 cannot be moved a little
    assert gradcheck(lambda *x: head_routed_attention(*x, **options), [*leaves, whole])


@pytest.mark.parametrize("active", [1.0, 0.75, 0.5])
def test_hardly_more_scores_are_computed_than_active_pairs_see(active):
    from hybridlm.kernels.head_routed_attention.native import computed_scores

    T, H = 4096, 2
    q, k, v, gate = (x.float() for x in make(1, T, H, H, 8, active))
    x = RoutedArguments.checked(q, k, v, gate, sink=None, window=None, cu_seqlens=None, sequences=None)
    share = (gate != 0).double().mean().item()
    computed, ideal = computed_scores(x), share * H * T * (T + 1) / 2
    assert 0.99 * ideal < computed < 1.08 * ideal


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_flops_are_those_of_all_heads():
    inputs = make(1, 60, 4, 2, 16)
    keys = sum(range(1, 61)) / 60
    forward = head_routed_attention_flops(16, keys) * 60 * 4
    assert counted(lambda: run(inputs, backend="native")) == forward * 3.5
    cut = {"cu_seqlens": torch.tensor([0, 20, 60]), "window": [5, 100], "sink": [2, 0]}
    seen = [sum(min(t + 1, 7) for n in (20, 40) for t in range(n)), sum(t + 1 for n in (20, 40) for t in range(n))]
    assert counted(lambda: run(inputs, backend="native", **cut)) == 3.5 * 4 * 16 * 2 * sum(seen)


def test_native_ops_have_results_of_the_right_shape_for_tensors_that_are_none():
    q, k, v, gate = (x.float() for x in make(1, 9, 4, 2))
    ops = torch.ops.hybridlm_native
    o, lse = ops.head_routed_attention_forward(q, k, v, gate, [], [], [0, 4, 9])
    opcheck(ops.head_routed_attention_forward, (q, k, v, gate, [], [], [0, 4, 9]), test_utils="test_faketensor")
    given_ = (q, k, v, gate, o, lse, o, [1, 2], [3, 4], [0, 4, 9])
    opcheck(ops.head_routed_attention_backward, given_, test_utils="test_faketensor")


def test_calls_from_several_threads_at_once():
    inputs = make(2, 100)
    expected = run(inputs, backend="native")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: run(inputs, backend="native"), range(8)))
    assert all(same(x, expected) for x in found)


def test_denormals_are_flushed_inside_and_only_there():
    q, k, v, gate = (x.float() for x in make(1, 100))
    gate[:, 50] = 1e-42
    found = run([q, k, v, gate], torch.float32, backend="native")
    assert not any(found[name][:, 50].any() for name in ("o", "dq", "dgate"))
    assert torch.tensor([1e-40]).mul(0.5).item() != 0
