"""Gated linear attention in Triton against the recurrence in float64."""

import os

import pytest
import torch
import torch.nn.functional as F

from hybridlm.kernels import gated_linear_attention, gated_linear_attention_step
from hybridlm.tests.kernels.adversarial import assert_exact, inputs
from hybridlm.tests.oracles import assert_close

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GATES = ("channel", "head", None)
FORWARD, BACKWARD, HALF = 1e-5, 1e-4, 1e-2


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(gate, B=1, T=70, H=2, K=16, V=24, n=None, seed=0):
    """Signed queries, keys, values; decays in (0, 1); a non-zero initial state. float64."""
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64).to(DEVICE)  # noqa: E731
    shape = {"channel": (B, T, H, K), "head": (B, T, H)}.get(gate)
    arguments = {"q": randn(B, T, H, K), "k": randn(B, T, H, K), "v": randn(B, T, H, V)}
    arguments["g"] = None if shape is None else F.logsigmoid(randn(*shape) + 1)
    return arguments | {"initial_state": randn(n or B, H, K, V)}


def run(arguments, dtype=torch.float64, cotangents=("o", "state"), **options):
    """o, the final state and the gradients of all inputs for fixed random cotangents."""
    state_dtype = torch.promote_types(dtype, torch.float32)
    dtypes = {"g": state_dtype, "initial_state": state_dtype}
    given = {name: x for name, x in arguments.items() if x is not None}
    leaves = {name: x.to(dtypes.get(name, dtype)).requires_grad_() for name, x in given.items()}
    o, state = gated_linear_attention(**{"g": None} | leaves, output_final_state=True, **options)
    found = {"o": o, "state": state}
    rng = torch.Generator().manual_seed(9)
    weights = {name: torch.randn(found[name].shape, generator=rng).to(DEVICE) for name in cotangents}
    loss = sum((found[name] * weight).sum() for name, weight in weights.items())
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return found | {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}


def check(arguments, dtype=torch.float32, **options):
    """Triton in dtype against the reference in float64, on inputs rounded to dtype."""
    rounded = {name: x if x is None or name in ("g", "initial_state") else x.to(dtype) for name, x in arguments.items()}
    plain = {name: x for name, x in options.items() if name not in ("chunk_size", "recompute")}
    expected = run({name: x if x is None else x.double() for name, x in rounded.items()}, backend="reference", **plain)
    found = run(rounded, dtype, backend="triton", **options)
    for name, x in expected.items():
        bound = HALF if dtype != torch.float32 else FORWARD if name in ("o", "state") else BACKWARD
        assert_close(found[name], x, bound, name)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gate", GATES)
def test_outputs_and_gradients(gate, dtype):
    found = check(make(gate), dtype)
    assert found["o"].dtype == dtype and found["state"].dtype == torch.float32


@pytest.mark.parametrize("chunk_size", [16, 32, 64])
@pytest.mark.parametrize("gate", GATES)
def test_chunk_sizes_and_head_dims_that_are_no_power_of_two(gate, chunk_size):
    check(make(gate, T=50, H=1, K=48, V=96), chunk_size=chunk_size)


@pytest.mark.parametrize(("K", "V"), [(1, 1), (7, 5), (130, 20), (16, 130)])
@pytest.mark.parametrize("gate", GATES)
def test_head_dims(gate, K, V):
    check(make(gate, T=20, H=1, K=K, V=V), chunk_size=16)


@pytest.mark.parametrize("T", [1, 2, 16, 17, 33])
def test_lengths(T):
    check(make("channel", B=2, T=T, H=1), chunk_size=16)


@pytest.mark.parametrize(("gate", "recompute"), [("channel", False), ("channel", True), ("head", True), (None, False)])
def test_packed_documents(gate, recompute):
    cu_seqlens = torch.tensor([0, 0, 1, 20, 20, 56, 57, 57], device=DEVICE)
    arguments = make(gate, T=57, H=1, n=7)
    found = check(arguments, cu_seqlens=cu_seqlens, chunk_size=16, recompute=recompute)
    empty = cu_seqlens.diff() == 0
    assert torch.equal(found["state"][empty], arguments["initial_state"].float()[empty])


@pytest.mark.parametrize("gate", GATES)
def test_recomputed_states_give_the_same_bits(gate):
    arguments = make(gate, T=40, H=1)
    kept = run(arguments, torch.bfloat16, backend="triton", chunk_size=32)
    again = run(arguments, torch.bfloat16, backend="triton", chunk_size=32, recompute=True)
    for name, x in kept.items():
        assert torch.equal(x, again[name]), name


@pytest.mark.parametrize("cotangents", [("o",), ("state",)])
@pytest.mark.parametrize("gate", ["channel", "head"])
def test_gradients_of_one_output_alone(gate, cotangents):
    check(make(gate, T=33, H=1), chunk_size=16, cotangents=cotangents)


def test_no_initial_state_and_no_gradient():
    arguments = make("channel", T=33) | {"initial_state": None}
    check(arguments, chunk_size=16)
    half = {name: x if x is None else x.bfloat16() for name, x in arguments.items()}
    with torch.no_grad():
        o, state = gated_linear_attention(**half, output_final_state=True, backend="triton")
    assert not o.requires_grad and state.dtype == torch.float32


def test_gates_in_half_precision_get_their_gradient_in_it():
    arguments = {name: x.bfloat16() for name, x in make("channel", T=33).items() if name != "initial_state"}
    leaves = {name: x.requires_grad_() for name, x in arguments.items()}
    gated_linear_attention(**leaves, backend="triton")[0].float().sum().backward()
    exact = {name: x.detach().double().requires_grad_() for name, x in arguments.items()}
    gated_linear_attention(**exact, backend="reference")[0].sum().backward()
    for name, x in leaves.items():
        assert x.grad.dtype == torch.bfloat16
        assert_close(x.grad, exact[name].grad, HALF, name)


def test_strided_inputs():
    arguments = make("channel", T=20, H=2, K=16, V=16)
    packed = torch.stack([arguments[name] for name in ("q", "k", "v")], 2).float()
    q, k, v = packed.unbind(2)
    assert not q.is_contiguous()
    g = arguments["g"].float()
    o, _ = gated_linear_attention(q, k, v, g, backend="triton")
    assert_close(o, gated_linear_attention(q, k, v, g, backend="reference")[0], FORWARD)


# gates


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="exact dots, as interpreted")
@pytest.mark.parametrize("gates", ["mixed", "runs", "weak", "strong"])
@pytest.mark.parametrize("gate", ["channel", "head"])
def test_adversarial_gates_are_as_exact_as_the_recurrence(gate, gates):
    op = "gated_linear_attention"
    assert_exact(op, "triton", inputs(op, gates, T=100, K=16, V=16, gate=gate))


@pytest.mark.parametrize("strong", [-40.0, -1e4, -float("inf")])
@pytest.mark.parametrize("gate", ["channel", "head"])
def test_decays_that_underflow(gate, strong):
    arguments = make(gate, T=40, H=1)
    check(arguments | {"g": torch.full_like(arguments["g"], -40.0)})
    mixed = torch.where(
        torch.rand(arguments["g"].shape, generator=torch.Generator().manual_seed(1)) < 0.3, strong, -0.1
    )
    arguments["g"] = mixed.to(arguments["g"])
    check(arguments)
    check(arguments, torch.bfloat16)


# steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gate", GATES)
def test_steps_follow_the_recurrence(gate, dtype):
    *tokens, state = make(gate, B=2, T=3, K=20, V=36).values()
    q, k, v, g = (x if x is None else x.to(dtype) for x in tokens)
    state, expected = state.float(), state.float()
    for t in range(3):
        x = [y if y is None else y[:, t] for y in (q, k, v, g)]
        o = gated_linear_attention_step(*x, state=state, scale=0.3, backend="triton")
        reference = gated_linear_attention_step(*x, state=expected, scale=0.3, backend="reference")
        assert o.dtype == dtype
        assert_close(o, reference, FORWARD if dtype == torch.float32 else HALF)
    assert_close(state, expected, FORWARD)


# errors


def test_refusals_say_what_to_do():
    arguments = make("channel", T=3)
    with pytest.raises(ValueError, match=r"float64; allowed: float32, bfloat16, float16.*backend="):
        gated_linear_attention(**arguments, backend="triton")
    wide = {name: x.float() for name, x in make("channel", T=3, K=257).items()}
    with pytest.raises(ValueError, match=r"head dim K=257; allowed: 1 to 256"):
        gated_linear_attention(**wide, backend="triton")
    q, k, v, g = (wide[name][:, 0] for name in ("q", "k", "v", "g"))
    with pytest.raises(ValueError, match=r"head dim K=257; allowed: 1 to 256"):
        gated_linear_attention_step(q, k, v, g, state=wide["initial_state"], backend="triton")
