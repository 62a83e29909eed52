"""One token of banded attention against the last row of the whole, and over slots of which some are seen."""

import pytest
import torch

from hybridlm.kernels import banded_attention, banded_attention_step
from hybridlm.tests.oracles import assert_close

BACKENDS = ("reference", "native")
BOUNDS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-3}

pytestmark = pytest.mark.usefixtures("native")


def make(N=2, S=150, H=6, KV=2, D=24, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(N, S, heads, D, generator=rng, dtype=torch.float64).to(dtype) for heads in (H, KV, KV)]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("H", "KV"), [(2, 2), (3, 1), (14, 2)])
def test_steps_are_the_rows_of_the_whole(backend, H, KV, dtype):
    """Sinks and windows of each key head: `seen` says which slots it still sees."""
    q, k, v = make(H=H, KV=KV, dtype=dtype)
    sink, window = torch.tensor([3, 70][:KV]), torch.tensor([20, 9][:KV])
    expected = banded_attention(*(x.double() for x in (q, k, v)), sink=sink, window=window, backend="reference")
    for t in (0, 1, 25, 149):
        slot = torch.arange(t + 1)[:, None]
        seen = ((t - slot < window) | (slot < sink)).expand(2, -1, -1)
        keys = (x[:, : t + 1] for x in (k, v))
        assert_close(banded_attention_step(q[:, t], *keys, seen=seen, backend=backend), expected[:, t], BOUNDS[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_that_are_not_seen_may_hold_anything(backend):
    q, k, v = make(S=700)
    seen = torch.rand(2, 700, generator=torch.Generator().manual_seed(1)) < 0.2
    seen[0], seen[0, 650] = False, True  # all but the last part without a key
    found = banded_attention_step(q[:, 0], k, v, seen=seen, backend=backend)
    by_head = seen[..., None].repeat(1, 1, 2)
    assert torch.equal(found, banded_attention_step(q[:, 0], k, v, seen=by_head, backend=backend))
    expected = [banded_attention_step(q[n, :1], k[n : n + 1, seen[n]], v[n : n + 1, seen[n]]) for n in range(2)]
    assert_close(found, torch.cat(expected), 1e-13)
    if backend == "native":  # and the definition multiplies them by 0
        k[~seen], v[~seen] = torch.nan, torch.nan
        assert torch.equal(found, banded_attention_step(q[:, 0], k, v, seen=seen, backend=backend))


def test_caches_of_any_strides_are_read_in_place():
    q, k, v = make()
    expected = banded_attention_step(q[:, 0], k, v, backend="native")
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    longer = [torch.cat((x, x), 1)[:, :150] for x in (k, v)]
    for keys in (by_head, longer):
        assert torch.equal(banded_attention_step(q[:, 0], *keys, backend="native"), expected)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (torch.ones(2, 150), "seen is torch.float32; allowed: torch.bool"),
        (torch.ones(2, 149, dtype=torch.bool), r"seen has shape \[2, 149\]; allowed: \[2, 150\]"),
        (torch.ones(2, 150, 3, dtype=torch.bool), r"seen has shape \[2, 150, 3\]; allowed: \[2, 150, 2\]"),
    ],
)
def test_errors_name_what_is_allowed(seen, message):
    q, k, v = make()
    with pytest.raises(ValueError, match=message):
        banded_attention_step(q[:, 0], k, v, seen=seen)
