"""Head-routed attention's Triton kernels, interpreted, against the reference in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hybridlm.kernels import head_routed_attention, head_routed_attention_step
from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.tests.oracles import assert_close
from hybridlm.tests.train.test_host_reads import HostReads
from hybridlm.tools.kernel_report.count import count

triton = pytest.importorskip("triton")
from hybridlm.kernels.head_routed_attention import triton_attention  # noqa: E402
from hybridlm.kernels.shared import triton_band, triton_band_step  # noqa: E402

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret and not torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1 or a GPU"
)
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative RMS
NAMES = ("dq", "dk", "dv", "dgate")
Tensors = list[torch.Tensor]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Of 16 rows and keys, so that short sequences have many."""
    tile = triton_band.Tiles(16, 16, 4, 1)
    monkeypatch.setattr(triton_band, "tiles", lambda D, dtype: (tile, tile, tile))
    monkeypatch.setattr(triton_attention, "ORDER_BLOCK", 32)


def make(B=1, T=50, H=2, kv_heads=1, D=16, active=0.5, dtype=torch.float32, seed=0) -> Tensors:
    """q, k, v, gate; of an inactive pair q is NaN: it must not be read."""
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, T, heads, D, generator=rng).to(DEVICE, dtype) for heads in (H, kv_heads, kv_heads))
    chosen = (torch.rand(B, T, H, generator=rng) < active).to(DEVICE)
    gate = (torch.rand(B, T, H, generator=rng) + 0.5).to(DEVICE) * chosen
    return [q.masked_fill(~chosen[..., None], torch.nan), k, v, gate]


def run(inputs: Tensors, backend: str, **options) -> dict[str, torch.Tensor]:
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    o = head_routed_attention(*leaves, backend=backend, **options)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(9)).to(o)
    return {"o": o} | dict(zip(NAMES, torch.autograd.grad(o, leaves, do), strict=True))


def check(inputs: Tensors, **options) -> dict[str, torch.Tensor]:
    """All results agree with the reference, and are 0 and not nearly 0 for inactive pairs."""
    found = run(inputs, "triton", **options)
    q, k, v, gate = (x.double() for x in inputs)
    expected = run([q.nan_to_num(), k, v, gate], "reference", **options)
    for name, x in expected.items():
        assert_close(found[name], x, BOUNDS[inputs[0].dtype], name)
    for name in ("o", "dq", "dgate"):
        assert not found[name][inputs[3] == 0].any(), name
    return found


@pytest.mark.parametrize("kv_heads, group", [(1, 1), (2, 3), (8, 1), (1, 4)])
def test_heads_and_groups(kv_heads, group):
    check(make(T=40, H=kv_heads * group, kv_heads=kv_heads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check(make(2, 50, 4, 2, 32, dtype=dtype))
    q, k, v, gate = make(1, 30, 2, 1, 32, dtype=dtype)
    assert check([q, k, v, gate.to(dtype)])["dgate"].dtype == dtype


@pytest.mark.parametrize("D", [1, 24, 80, 256])
def test_head_dims(D):
    check(make(T=20, D=D))


@pytest.mark.parametrize("T", [16, 17])
def test_lengths_around_a_tile(T):
    check(make(2, T, 3, active=0.7))


def test_one_token():
    q, k, v, gate = make(2, 1, 3, active=0.7)
    found = run([q, k, v, gate], "triton")
    assert_close(found["o"], v * gate[..., None], 1e-6)
    assert found["dv"].any() and max(found[name].abs().max() for name in ("dq", "dk")) < 1e-6


def test_everything_active_is_dense_attention():
    inputs = make(T=70, H=4, kv_heads=2, active=1.0)
    q, k, v, gate = (x.transpose(1, 2) for x in inputs)
    dense = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) * gate[..., None]
    assert_close(check(inputs)["o"], dense.transpose(1, 2), 1e-6)


def test_nothing_active():
    found = run(make(2, 40, 4, 2, active=0.0), "triton")
    assert not any(x.any() for x in found.values())


def test_heads_of_unequal_load():
    inputs = make(1, 60, 4, 2)
    inputs[3][:, :, 1] = 1.0
    inputs[3][:, 20:, 0] = 0.0
    inputs[3][:, :, 2:] = 0.0
    inputs[3][:, 59, 3] = -2.0  # one pair alone, at the very end, weighed less than nothing
    inputs[0] = inputs[0].nan_to_num()
    check(inputs)


@pytest.mark.parametrize(
    "sink, window",
    [(None, 2), (0, 16), (5, 20), ([0, 30], [7, 3]), ([40, 16], [1, 16]), (3, [50, 11]), (100, 100)],
    ids=str,
)
def test_sink_and_window(sink, window):
    check(make(1, 50, 4, 2), sink=sink, window=window)


def test_a_window_in_half_precision_and_packed():
    cu_seqlens = torch.tensor([0, 7, 40, 90], device=DEVICE)
    check(make(1, 90, 2, 1, dtype=torch.bfloat16), cu_seqlens=cu_seqlens, window=9, sink=4)


BOUNDARIES = (0, 0, 1, 34, 34, 60)


def test_packed_documents_of_any_length():
    check(make(1, 60, 3, 1), cu_seqlens=torch.tensor(BOUNDARIES, device=DEVICE))


def test_packed_documents_equal_separate_ones():
    inputs = make(1, 60, 2, 1)
    packed = run(inputs, "triton", cu_seqlens=torch.tensor(BOUNDARIES, device=DEVICE))
    for a, b in itertools.pairwise(BOUNDARIES):
        alone = head_routed_attention(*(x[:, a:b] for x in inputs), backend="triton")
        assert torch.equal(alone, packed["o"][:, a:b])


def test_views_are_read_as_they_lie():
    inputs = make(2, 20, 4, 2)
    inputs[0] = inputs[0].nan_to_num()
    plain = run(inputs, "triton")
    transposed = run([x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs], "triton")
    wide = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in inputs[:3]]
    strided = [x.detach().requires_grad_() for x in (*wide, inputs[3])]
    o = head_routed_attention(*strided, backend="triton")
    assert all(torch.equal(x, transposed[name]) for name, x in plain.items())
    assert torch.equal(o, plain["o"])
    expanded = torch.autograd.grad(o.sum(), strided)
    ones = torch.autograd.grad(head_routed_attention(*strided, backend="triton"), strided, torch.ones_like(o))
    assert all(torch.equal(a, b) for a, b in zip(expanded, ones, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("window", [None, 10])
def test_a_spoilt_key_or_value_reaches_the_rows_that_see_it_and_no_others(value, window):
    inputs, at = make(1, 40, 2, 1, active=0.8), 21
    clean = run(inputs, "triton", window=window)
    sees = torch.zeros(40, dtype=torch.bool, device=DEVICE)
    sees[at : None if window is None else at + window] = True
    rows = (inputs[3][0] != 0) & sees[:, None]
    for spoilt in (1, 2):
        changed = [x.clone() for x in inputs]
        changed[spoilt][:, at, :, 3] = value
        found = run(changed, "triton", window=window)
        for name in ("o", "dq"):
            assert torch.equal(found[name][:, ~sees], clean[name][:, ~sees]), name
            reached = ~found[name][0].isfinite().all(-1)
            assert reached.any() and not (reached & ~rows).any(), name
            if value != value:  # a key that is -inf to a query has no weight
                assert torch.equal(reached, rows), name


def test_the_host_never_waits_for_the_device(monkeypatch):
    reads, inputs = HostReads(monkeypatch), [x.requires_grad_() for x in make(1, 40, 2, 1)]
    reads.on_device(*inputs)
    with reads:
        o = head_routed_attention(*inputs, window=9, sequences=Sequences(1, 40, (0, 10, 40)), backend="triton")
        o.backward(torch.ones_like(o))
        q, k, v, gate = (x[0] for x in inputs)
        head_routed_attention_step(q, k[:, None], v[:, None], gate, backend="triton")
    assert reads.found == {}


def passes(gate: torch.Tensor, group: int, size: int) -> tuple[list[int], list[int]]:
    """For each tile of `size` active pairs of a key head the keys up to its last token; and for each `size` keys the
    active pairs of their and later tokens: what the algorithm has to visit, of one document."""
    token = torch.arange(len(gate))[:, None].expand_as(gate).unflatten(1, (-1, group))  # [T, H_kv, G]
    keys, rows = [], []
    for head, active in enumerate((gate != 0).unflatten(1, (-1, group)).unbind(1)):
        at = token[:, head][active]
        keys += [int(tile[-1]) + 1 for tile in at.split(size)]
        rows += [int((at >= first).sum()) for first in range(0, len(gate), size)]
    return keys, rows


def test_bytes_and_flops_are_those_of_the_algorithm():
    """Forward: q of active pairs, o of all, and k and v once for each tile of pairs. dq: q, o, dO of active pairs, dq
    of all, and k and v again. dk and dv: k, v, dk, dv, and q and dO once for each tile of keys that they see. Tables,
    gates and sums of rows are not in the formula: 1.1 times it is allowed. FLOPs: whole tiles."""
    T, H, kv_heads, D, size = 100, 4, 2, 64, 16
    inputs = make(1, T, H, kv_heads, D, dtype=torch.bfloat16)
    with count() as counted:
        run(inputs, "triton")
    order, forward, dq, dkv = counted.launches
    keys, rows = passes(inputs[3][0], H // kv_heads, size)
    row, active, pairs = 2 * D, int((inputs[3] != 0).sum()), T * H
    for launch, ideal in (
        (forward, active * row + pairs * row + sum(keys) * 2 * row),
        (dq, 3 * active * row + pairs * row + sum(keys) * 2 * row),
        (dkv, 4 * T * kv_heads * row + sum(rows) * 2 * row),
    ):
        assert ideal <= launch.load_bytes + launch.store_bytes <= 1.1 * ideal, launch.kernel
    assert order.load_bytes + order.store_bytes <= 0.1 * forward.load_bytes
    area = size * size * sum(math.ceil(n / size) for n in keys)
    assert forward.flops == {"bf16": 4 * D * area} and dq.flops == {"bf16": 6 * D * area}
    assert dkv.flops == {"bf16": 8 * D * size * size * sum(math.ceil(n / size) for n in rows)}


def test_the_tiles_that_a_gpu_gets(monkeypatch):
    monkeypatch.undo()
    check(make(1, 150, 4, 2, 32, dtype=torch.bfloat16))
    check(make(1, 100, 2, 1, 32), window=40, sink=8)


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r'backend "triton" got torch\.float64.*backend="chunked"'):
        head_routed_attention(*make(T=4, dtype=torch.float64), backend="triton")
    with pytest.raises(ValueError, match="head dim D=257; allowed: 1 to 256"):
        head_routed_attention(*make(T=4, D=257), backend="triton")


# a step


def step(N=3, S=70, H=4, kv_heads=2, D=16, dtype=torch.float32) -> Tensors:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*shape, D, generator=rng) for shape in ((N, H), (N, kv_heads, S), (N, kv_heads, S)))
    gate = torch.randn(N, H, generator=rng) * (torch.rand(N, H, generator=rng) < 0.5)
    return [x.to(DEVICE, dtype) for x in (q, k.transpose(1, 2), v.transpose(1, 2))] + [gate.to(DEVICE)]


def check_step(inputs: Tensors, seen: torch.Tensor | None = None) -> torch.Tensor:
    o = head_routed_attention_step(*inputs, seen=seen, backend="triton")
    expected = head_routed_attention_step(*(x.nan_to_num().double() for x in inputs), seen=seen, backend="reference")
    assert_close(o, expected, BOUNDS[inputs[0].dtype])
    assert not o[inputs[3] == 0].any()
    return o


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("H, kv_heads, D", [(2, 2, 16), (3, 1, 24), (8, 2, 64)])
def test_step(H, kv_heads, D, dtype):
    check_step(step(H=H, kv_heads=kv_heads, D=D, dtype=dtype))


@pytest.mark.parametrize("processors", [1, 132])
def test_step_sees_the_slots_that_hold_a_key(processors, monkeypatch):
    """In one part and in several, some of which have no key; what lies in the other slots may be anything."""
    monkeypatch.setattr(triton_band_step, "multiprocessors", lambda device: processors)
    monkeypatch.setattr(triton_band_step, "BLOCK", 16)
    inputs = step()
    seen = torch.rand(3, 70, generator=torch.Generator().manual_seed(1)).to(DEVICE) < 0.3
    seen[0] = False
    seen[0, 65] = True
    for x in inputs[1:3]:
        x[~seen] = torch.nan
    assert check_step(inputs, seen).isfinite().all()


def test_step_without_an_active_head_reads_no_key():
    q, k, v, _ = step()
    gate = torch.zeros(3, 4, device=DEVICE)
    gate[1, 2:] = 1.0
    k[:, :, 0], v[:, :, 0] = torch.nan, torch.nan
    k[::2], v[::2] = torch.nan, torch.nan
    check_step([q, k, v, gate])


def test_step_of_one_key():
    q, k, v, gate = step(S=1)
    assert_close(check_step([q, k, v, gate]), v[:, 0].repeat_interleave(2, 1) * gate[..., None], 1e-6)
