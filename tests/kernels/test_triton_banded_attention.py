"""Banded attention's Triton kernels, interpreted, against the reference in float64."""

import itertools

import pytest
import torch

from hybridlm.kernels import banded_attention, banded_attention_step
from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.tests.oracles import assert_close
from hybridlm.tests.train.test_host_reads import HostReads
from hybridlm.tools.kernel_report.count import count

triton = pytest.importorskip("triton")
from hybridlm.kernels.shared import triton_band, triton_band_step  # noqa: E402

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret and not torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1 or a GPU"
)
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative RMS
NAMES = ("o", "dq", "dk", "dv")
Tensors = list[torch.Tensor]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Of 16 rows and keys, so that short sequences have many."""
    tile = triton_band.Tiles(16, 16, 4, 1)
    monkeypatch.setattr(triton_band, "tiles", lambda D, dtype: (tile, tile, tile))


def make(B=1, T=50, H=2, kv_heads=1, D=16, dtype=torch.float32, seed=0) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, heads, D, generator=rng).to(DEVICE, dtype) for heads in (H, kv_heads, kv_heads)]


def run(inputs: Tensors, backend: str, **options) -> dict[str, torch.Tensor]:
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    o = banded_attention(*leaves, backend=backend, **options)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(9)).to(o)
    return dict(zip(NAMES, (o, *torch.autograd.grad(o, leaves, do)), strict=True))


def check(inputs: Tensors, **options) -> dict[str, torch.Tensor]:
    options = {"sink": 0, "window": None} | options
    found = run(inputs, "triton", **options)
    expected = run([x.double() for x in inputs], "reference", **options)
    for name, x in expected.items():
        assert_close(found[name], x, BOUNDS[inputs[0].dtype], name)
    return found


@pytest.mark.parametrize("kv_heads, group", [(1, 1), (2, 3), (1, 7)])
def test_heads_and_groups(kv_heads, group):
    inputs = make(T=40, H=kv_heads * group, kv_heads=kv_heads)
    check(inputs)
    check(inputs, sink=3, window=9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check(make(2, 50, 4, 2, 32, dtype=dtype), sink=5, window=20)


@pytest.mark.parametrize("D", [1, 24, 256])
def test_head_dims(D):
    check(make(T=20, D=D), sink=1, window=9)


@pytest.mark.parametrize("T", [2, 16, 17])
def test_lengths_around_a_tile(T):
    check(make(2, T, 3), sink=2, window=7)


def test_one_token():
    inputs = make(2, 1, 3)
    found = run(inputs, "triton", sink=2, window=1)
    assert_close(found["o"], inputs[2].expand(-1, -1, 3, -1), 1e-6)
    assert max(found[name].abs().max() for name in ("dq", "dk")) < 1e-6


@pytest.mark.parametrize(
    "sink, window",
    [(0, 2), (0, 16), (5, 20), ([0, 30], [7, 3]), ([40, 16], [2, 16]), (3, [50, 11]), (100, 100), (5, [3, 2**40])],
    ids=str,
)
def test_sink_and_window(sink, window):
    check(make(1, 50, 4, 2), sink=sink, window=window)


BOUNDARIES = (0, 0, 1, 34, 34, 60)


@pytest.mark.parametrize("sink, window", [(0, None), (4, 9), (40, 3)])
def test_packed_documents_equal_separate_ones(sink, window):
    inputs = make(1, 60, 3, 1)
    packed = check(inputs, cu_seqlens=torch.tensor(BOUNDARIES, device=DEVICE), sink=sink, window=window)
    for a, b in itertools.pairwise(BOUNDARIES):
        alone = banded_attention(*(x[:, a:b] for x in inputs), sink=sink, window=window, backend="triton")
        assert torch.equal(alone, packed["o"][:, a:b])


def test_views_are_read_as_they_lie():
    inputs = make(2, 20, 4, 2)
    plain = run(inputs, "triton", sink=2, window=5)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    wide = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in inputs]
    for views in (transposed, wide):
        found = run(views, "triton", sink=2, window=5)
        assert all(torch.equal(x, found[name]) for name, x in plain.items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [1, 2])
def test_a_spoilt_key_or_value_reaches_the_rows_that_see_it_and_no_others(value, which):
    inputs, at, sink, window = make(1, 60, 2, 1), 21, 3, 10
    clean = run(inputs, "triton", sink=sink, window=window)
    inputs[which][:, at, :, 3] = value
    found = run(inputs, "triton", sink=sink, window=window)
    sees = torch.zeros(60, dtype=torch.bool, device=DEVICE)
    sees[at : at + window] = True
    for name in ("o", "dq"):
        assert torch.equal(found[name][:, ~sees], clean[name][:, ~sees]), name
        if value != value:  # a key that is -inf to a query has no weight
            assert not found[name][0, sees].isfinite().all(-1).any(), name


def test_the_host_never_waits_for_the_device(monkeypatch):
    reads, inputs = HostReads(monkeypatch), [x.requires_grad_() for x in make(1, 40, 2, 1)]
    reads.on_device(*inputs)
    with reads:
        sequences = Sequences(1, 40, (0, 10, 40))
        o = banded_attention(*inputs, sink=[2], window=[9], sequences=sequences, backend="triton")
        o.backward(torch.ones_like(o))
        q, k, v = (x[0] for x in inputs)
        banded_attention_step(q, k[:, None], v[:, None], backend="triton")
    assert reads.found == {}


def visits(T: int, group: int, size: int, sink: int, window: int) -> tuple[list[int], list[int]]:
    """Keys that each tile of `size` rows has to visit, and rows that each `size` keys have, a key head's."""
    rows = [i // group for i in range(T * group)]
    keys = []
    for first in range(0, T * group, size):
        tile = rows[first : first + size]
        begin = max(tile[0] - window + 1, 0)
        keys.append(min(sink, begin) + tile[-1] + 1 - begin)
    seen = []
    for first in range(0, T, size):
        last = min(first + size, T) - 1
        seen.append(sum(first <= t and (first < sink or t < last + window) for t in rows))
    return keys, seen


@pytest.mark.parametrize("sink, window", [(0, 1000), (0, 40), (20, 70)])
def test_bytes_are_those_of_the_span(sink, window):
    """Forward: q and o, and k and v of the sink and the window once for each tile of rows. dq: q, o, dO, dq, and k and
    v again. dk and dv: k, v, dk, dv, and q and dO once for each tile of keys that they see."""
    T, H, kv_heads, D, size = 200, 4, 2, 64, 16
    inputs = make(1, T, H, kv_heads, D, dtype=torch.bfloat16)
    with count() as counted:
        run(inputs, "triton", sink=sink, window=window)
    forward, dq, dkv = counted.launches
    keys, rows = (kv_heads * sum(x) for x in visits(T, H // kv_heads, size, sink, window))
    row, pairs = 2 * D, T * H
    for launch, ideal in (
        (forward, 2 * pairs * row + 2 * keys * row),
        (dq, 4 * pairs * row + 2 * keys * row),
        (dkv, 4 * T * kv_heads * row + 2 * rows * row),
    ):
        assert ideal <= launch.load_bytes + launch.store_bytes <= 1.1 * ideal, launch.kernel


def test_the_tiles_that_a_gpu_gets(monkeypatch):
    monkeypatch.undo()
    check(make(1, 150, 4, 2, 32, dtype=torch.bfloat16))
    check(make(1, 100, 2, 1, 32), window=40, sink=8)


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r'backend "triton" got torch\.float64.*backend="chunked"'):
        check(make(T=4, dtype=torch.float64))
    with pytest.raises(ValueError, match="head dim D=257; allowed: 1 to 256"):
        check(make(T=4, D=257))


@pytest.mark.parametrize("processors", [1, 132])
@pytest.mark.parametrize("by_head", [False, True])
def test_step_sees_the_slots_that_hold_a_key(processors, by_head, monkeypatch):
    """In one part and in several, some of which have no key; what lies in the other slots may be anything."""
    monkeypatch.setattr(triton_band_step, "multiprocessors", lambda device: processors)
    monkeypatch.setattr(triton_band_step, "BLOCK", 16)
    q, k, v = make(3, 70, 6, 2, dtype=torch.bfloat16)
    seen = torch.rand(3, 70, 2, generator=torch.Generator().manual_seed(1)).to(DEVICE) < 0.3
    seen[:, 65] = True
    seen = seen if by_head else seen[..., 0].contiguous()
    for x in (k, v):
        x[~seen] = torch.nan
    o = banded_attention_step(q[:, 0], k, v, seen=seen, backend="triton")
    expected = [x.nan_to_num().double() for x in (q[:, 0], k, v)]
    assert_close(o, banded_attention_step(*expected, seen=seen, backend="reference"), BOUNDS[torch.bfloat16])


def test_step_over_all_keys():
    q, k, v = make(3, 70, 6, 2)
    o = banded_attention_step(q[:, 0], k, v, backend="triton")
    expected = banded_attention_step(*(x.double() for x in (q[:, 0], k, v)), backend="reference")
    assert_close(o, expected, BOUNDS[torch.float32])
