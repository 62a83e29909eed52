"""One token of head-routed attention: the operator's last token, from a cache of any strides."""

import pytest
import torch

from hybridlm.kernels import available_backends, head_routed_attention, head_routed_attention_step
from hybridlm.tests.oracles import assert_close

BOUNDS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}
CPU = torch.device("cpu")
BACKENDS = [
    name
    for name, reason in available_backends("head_routed_attention_step", CPU).items()
    if name not in ("native", "triton") and reason is None
] + ["native"]

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(N=3, S=70, H=4, KV=2, D=16, active=0.6, seed=0):
    """q, k, v and a gate; float64."""
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    gate = randn(N, H) * (torch.rand(N, H, generator=rng) < active)
    return [randn(N, H, D), randn(N, S, KV, D), randn(N, S, KV, D), gate]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_steps_of_a_sequence_are_the_operator(backend, dtype):
    rng = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=rng).to(dtype)  # noqa: E731
    q, k, v, gate = randn(2, 9, 6, 12), randn(2, 9, 2, 12), randn(2, 9, 2, 12), randn(2, 9, 6)
    gate[torch.rand(2, 9, 6, generator=rng) < 0.4] = 0
    expected = head_routed_attention(*(x.double() for x in (q, k, v, gate)), backend="reference")
    for t in range(9):
        o = head_routed_attention_step(q[:, t], k[:, : t + 1], v[:, : t + 1], gate[:, t], backend=backend)
        assert o.dtype == dtype
        assert_close(o, expected[:, t], BOUNDS[dtype], f"token {t}")


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("S", [1, 63, 64, 65, 511, 512, 513, 1100])
@pytest.mark.parametrize(("H", "KV", "D"), [(2, 2, 64), (3, 1, 40), (8, 2, 96)])
def test_caches_of_any_length(S, H, KV, D, dtype):
    inputs = [x.to(dtype) for x in make(2, S, H, KV, D)]
    expected = head_routed_attention_step(*(x.double() for x in inputs), backend="reference")
    assert_close(head_routed_attention_step(*inputs, backend="native"), expected, BOUNDS[dtype])


def test_caches_are_read_as_they_lie():
    q, k, v, gate = make(3, 600, 4, 2)
    expected = head_routed_attention_step(q, k, v, gate, backend="native")
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    longer = [torch.cat((x, x), 1)[:, :600] for x in (k, v)]
    across = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (k, v)]
    shared = [x[:1].expand(3, -1, -1, -1) for x in (k, v)]
    for keys in (by_head, longer, across):
        assert torch.equal(head_routed_attention_step(q, *keys, gate, backend="native"), expected)
    one = head_routed_attention_step(q, *shared, gate, backend="native")
    assert torch.equal(one, head_routed_attention_step(q, *(x.contiguous() for x in shared), gate, backend="native"))


def test_slots_that_are_not_seen_may_hold_anything():
    q, k, v, gate = make(3, 1100, 4, 2)
    seen = torch.rand(3, 1100) < 0.5
    seen[:, 1099], seen[1, :1099], seen[2, 512:1024] = True, False, False
    for x in (k, v):
        x[~seen] = torch.nan
    found = head_routed_attention_step(q, k, v, gate, seen=seen, backend="native")
    k, v = (x.nan_to_num(3.0) for x in (k, v))
    assert_close(found, head_routed_attention_step(q, k, v, gate, seen=seen, backend="reference"), 1e-13)
    assert_close(found[1], gate[1, :, None] * v[1, 1099].repeat_interleave(2, 0), 1e-13)


def test_keys_that_nobody_uses_are_not_read():
    q, k, v, gate = make(2, 100, 4, 2, active=1.0)
    gate[:, 2:] = 0
    expected = head_routed_attention_step(q, k, v, gate, backend="native")
    for x in (k, v):
        x[:, :, 1] = torch.nan
    q[:, 2:] = torch.nan
    assert torch.equal(head_routed_attention_step(q, k, v, gate, backend="native"), expected)
    assert not expected[:, 2:].any()
    gate[0] = 0
    assert not head_routed_attention_step(q, k, v, gate, backend="native")[0].any()


def test_bit_for_bit_across_threads():
    inputs = [x.float() for x in make(1, 3000, 3, 1, active=1.0)]
    expected = head_routed_attention_step(*inputs, backend="native")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(head_routed_attention_step(*inputs, backend="native"), expected)
