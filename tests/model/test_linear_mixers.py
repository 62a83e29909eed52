"""HGRN, HGRN-2, RetNet, GLA and DeltaNet: the equations token by token, limits with a known answer, published forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlm.lm.mixers import Mixer
from hybridlm.lm.mixers.recurrent import RecurrentMixer
from hybridlm.lm.parts.context import Context
from hybridlm.lm.parts.rope import rotation
from hybridlm.lm.parts.rope_config import RopeConfig
from hybridlm.tests.model import linear_mixers as oracle
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.model.linear_mixers import CPU, ORACLES, D, dense, inputs, mixer
from hybridlm.tests.oracles import assert_close, fla_naive

CASES = [
    ("hgrn", {}),
    ("hgrn", {"expand_ratio": 2}),
    ("hgrn2", {}),
    ("hgrn2", {"n_heads": 4, "head_dim": 5}),
    ("retnet", {}),
    ("retnet", {"n_heads": 3, "head_dim": 6, "v_head_dim": 5}),
    ("gla", {}),
    ("gla", {"n_heads": 3, "head_dim": 5, "v_head_dim": 7, "gate_rank": 2, "gate_normalizer": 1.0}),
    ("deltanet", {}),
    ("deltanet", {"n_heads": 3, "head_dim": 5, "allow_negative_eigenvalues": True, "output_gate": True}),
    ("deltanet", {"conv_size": 1}),
]
T = 70


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_mixer_is_its_equations(name, options):
    m, x = mixer(name, **options), inputs(2, T)
    expected = torch.stack([ORACLES[name](m, row) for row in x])
    assert_close(m(x, dense(x)).y, expected, 1e-7 if name == "retnet" else 1e-11)  # RoPE's angles are float32
    assert_close(m.float()(x.float(), dense(x)).y, expected, 1e-5)


@pytest.mark.parametrize("name", ["hgrn", "hgrn2"])
def test_a_lower_bound_is_its_equation(name):
    m, x = mixer(name), inputs(1, T)
    lb = torch.rand(D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bounds = torch.stack((lb.log(), (1 - lb).log()))
    assert_close(m(x, dense(x), None, bounds).y[0], ORACLES[name](m, x[0], lb), 1e-11)


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any))
def test_packed_documents_are_computed_alone(name, lengths):
    m, x = mixer(name), inputs(1, sum(lengths))
    packed = Context.documents_after(lengths, None, CPU)
    expected = torch.cat([ORACLES[name](m, part) for part in x[0].split(lengths) if len(part)])
    assert_close(m(x, packed).y[0], expected, 1e-6)


@pytest.mark.parametrize("name", ["gla", "hgrn2", "retnet", "deltanet"])
def test_rebuilding_states_in_the_backward_changes_nothing(name):
    x, found = inputs(1, T), []
    for recompute in (False, True):
        m = mixer(name, recompute=recompute, chunk_size=16)
        m(x, dense(x)).y.square().sum().backward()
        found.append([p.grad for p in m.parameters()])
    for mine, other in zip(*found, strict=True):
        assert_close(mine, other, 1e-12)


# decoding


@pytest.mark.parametrize("name", [*ORACLES, "gated_deltanet"])
def test_single_tokens_update_the_state_in_place_unless_gradients_are_asked_for(name):
    m, x = mixer(name), inputs(2, 3)
    state = m.new_state(2, torch.float64, CPU)
    names = list(state.tensors())
    before = {name: state[name].data_ptr() for name in names}
    one = Context.dense(2, 1, None, CPU)
    with torch.no_grad():
        steps = [m(x[:, :1], one, state).y, m(x[:, 1:2], Context.dense(2, 1, [1, 1], CPU), state).y]
    assert {name: state[name].data_ptr() for name in names} == before
    kept, held = state.tensors(), {name: state[name] for name in names}
    steps.append(m(x[:, 2:], Context.dense(2, 1, [2, 2], CPU), state).y)
    assert steps[-1].requires_grad and all(torch.equal(held[key], kept[key]) for key in held)
    assert_close(torch.cat(steps, 1), m(x, dense(x)).y, 1e-6)


def test_a_state_keeps_no_prompt_alive():
    model = build(pattern=["deltanet"])
    cache = model(tokens(1, 50), cache=True).cache
    for layer in cache.layers:
        assert all(layer[name].untyped_storage().nbytes() == t.nbytes for name, t in layer.tensors().items())


# limits


def recalled(m: Mixer, x: Tensor, **changes) -> tuple[tuple, Tensor]:
    """What the mixer hands to its operator and what comes back, with some of the inputs replaced."""
    seen = []
    recur = RecurrentMixer.recur

    def spy(operator, inputs, *rest):
        inputs = tuple(changes.get(i, value) for i, value in zip("qkvgb", inputs, strict=False))
        seen.append((inputs, recur(m, operator, inputs, *rest)))
        return seen[-1][1]

    m.recur = spy
    m(x, dense(x))
    return seen[0]


def test_hgrn_that_forgets_all_passes_its_input_on():
    m, x = mixer("hgrn"), inputs(1, 20)
    with torch.no_grad():
        m.ifg_proj.weight[D : 2 * D] = -1e4 * x[0, 0]
    x = x[:, :1].expand(-1, 20, -1)  # x_0 at every step: all gates at sigmoid(-1e4 |x_0|^2) = 0
    _, h = recalled(m, x)
    assert_close(h, F.silu(m.ifg_proj(x)[..., :D]), 1e-12)


def test_hgrn_that_forgets_nothing_stays_at_zero_and_one_that_is_bounded_by_one_ignores_its_input():
    m, x = mixer("hgrn"), inputs(1, 20)
    full = torch.tensor([[0.0], [-torch.inf]], dtype=torch.float64).expand(2, D)  # lb = 1
    assert not m(x, dense(x), None, full).y.any()


def test_hgrn_with_a_constant_gate_is_a_moving_average():
    m, x = mixer("hgrn"), inputs(1, 50)
    with torch.no_grad():
        m.ifg_proj.weight[D : 2 * D] = 0  # f = 1/2
    _, h = recalled(m, x)
    age = torch.arange(50)[:, None] - torch.arange(50)
    average = torch.where(age >= 0, 0.5 ** (age + 1.0), 0).double()
    assert_close(h[0], average @ F.silu(m.ifg_proj(x)[0, :, :D]), 1e-12)


def test_hgrn2_of_one_key_is_hgrn():
    m, x = mixer("hgrn2", n_heads=D, head_dim=1), inputs(1, 50)
    (q, _, v, g), o = recalled(m, x)
    h, f, rows = torch.zeros(D, dtype=torch.float64), g.exp()[0, ..., 0], []
    for t in range(50):
        h = f[t] * h + (1 - f[t]) * v[0, t, :, 0]
        rows.append(h)
    assert_close(o[0, ..., 0], torch.stack(rows) * q[0, ..., 0], 1e-12)


def test_hgrn2_that_forgets_all_writes_one_into_every_key():
    m, x = mixer("hgrn2"), inputs(1, 30)
    ones = torch.ones(1, 30, m.n_heads, m.head_dim).double()
    (q, _, v, _), o = recalled(m, x, k=ones, g=-1e4 * ones)
    assert_close(o, q.sum(-1, keepdim=True) * v / q.shape[-1] ** 0.5, 1e-12)


def test_hgrn2_is_fla_s_gated_linear_attention():
    m, x = mixer("hgrn2"), inputs(2, 40)
    (q, k, v, g), o = recalled(m, x)
    assert_close(k, 1 - g.exp(), 1e-12)
    assert_close(o, fla_naive("gla").naive_recurrent_gla(q, k, v, g)[0], 1e-6)


def test_hgrn_is_fla_s_recurrence():
    m, x = mixer("hgrn"), inputs(2, 40)
    i, f, _ = m.ifg_proj(x).chunk(3, -1)
    (u, g), h = recalled(m, x)
    assert_close(u, F.silu(i) * (1 - f.sigmoid()), 1e-12)
    assert_close(h, fla_naive("hgrn").naive_recurrent_hgrn(u, g)[0], 1e-6)


def test_retention_is_fla_s_and_the_parallel_form_of_the_paper():
    m, x = mixer("retnet", n_heads=4, head_dim=8), inputs(2, 40)
    (q, k, v, _), o = recalled(m, x)
    q, k, v, o = (y.transpose(1, 2) for y in (q, k, v, o))
    assert_close(o, fla_naive("retention").naive_retention(q, k, v), 1e-5)
    age = torch.arange(40)[:, None] - torch.arange(40)
    D = torch.where(age >= 0, (1 - 2.0 ** (-5 - torch.arange(4.0)))[:, None, None] ** age, 0).double()
    assert_close(o, (q @ k.mT * D) @ v / 8**0.5, 1e-6)


def test_retention_without_decay_is_linear_attention():
    m, x = mixer("retnet"), inputs(1, 40)
    (q, k, v, _), o = recalled(m, x, g=None)
    q, k, v, o = (y.transpose(1, 2) for y in (q, k, v, o))
    assert_close(o, (q @ k.mT).tril() @ v / q.shape[-1] ** 0.5, 1e-12)


def test_retention_is_gated_linear_attention_with_a_constant_gate():
    m, x = mixer("retnet"), inputs(1, 40)
    (_, k, _, g), o = recalled(m, x)
    assert_close(o, recalled(m, x, g=g[..., None].expand_as(k))[1], 1e-12)


def test_half_lives_of_retnet_s_heads():
    log_gamma = mixer("retnet", n_heads=8, head_dim=4).log_decay(inputs(1, 1))
    half_lives = [round(math.log(0.5) / g) for g in log_gamma.tolist()]
    assert half_lives == [22, 44, 88, 177, 355, 709, 1419, 2839]


def test_shifted_positions_change_no_retention():
    m, x = mixer("retnet"), inputs(1, 30)
    late = Context.dense(1, 30, [1000], CPU)
    assert_close(m(x, late).y, m(x, dense(x)).y, 1e-4)  # angles of 1000 radians are float32
    cos, sin = rotation(RopeConfig(), 8, late.positions)
    assert cos.shape == sin.shape == (1, 30, 1, 8)


def test_gla_that_forgets_nothing_is_linear_attention_and_one_that_forgets_all_has_no_memory():
    m, x = mixer("gla", gate_normalizer=1.0), inputs(1, 40)
    with torch.no_grad():
        m.a_bias.fill_(1e4)
    (q, k, v, _), o = recalled(m, x)
    (q, k, v, o), scale = (y.transpose(1, 2) for y in (q, k, v, o)), q.shape[-1] ** -0.5
    assert_close(o, scale * (q @ k.mT).tril() @ v, 1e-12)
    with torch.no_grad():
        m.a_bias.fill_(-1e4)
    assert_close(recalled(m, x)[1].transpose(1, 2), scale * (q * k).sum(-1, keepdim=True) * v, 1e-12)


def test_gla_with_equal_gates_in_a_head_is_retention():
    m, x = mixer("gla"), inputs(1, 40)
    g = -torch.rand(1, 40, m.n_heads).double()
    per_channel = g[..., None].expand(-1, -1, -1, m.head_dim)
    assert_close(recalled(m, x, g=per_channel)[1], recalled(m, x, g=g)[1], 1e-12)


def test_gla_starts_with_decays_near_one():
    gla = next(build(pattern=["gla"], d_model=128).mixers())
    with torch.no_grad():
        gla.a2_proj.weight.zero_()
    alpha = gla.log_decay(torch.randn(1, 5, 128)).exp()
    assert_close(alpha, torch.full_like(alpha, 0.5 ** (1 / 16)), 1e-6)
    assert alpha.mean().item() == pytest.approx(0.9576, abs=5e-5)
    with torch.no_grad():
        gla.a_bias.fill_(-16.0)
    assert gla.log_decay(torch.randn(1, 5, 128)).exp().mean().item() == pytest.approx(0.368, abs=5e-4)


def test_deltanet_that_writes_nothing_recalls_nothing():
    m, x = mixer("deltanet"), inputs(1, 30)
    assert recalled(m, x, b=torch.zeros(1, 30, m.n_heads))[1].abs().amax() < 1e-20


def orthonormal(T: int, m) -> Tensor:
    rows = torch.linalg.qr(torch.randn(m.n_heads, m.head_dim, m.head_dim, dtype=torch.float64))[0]
    return rows[:, :T].transpose(0, 1)[None]  # [1, T, H, K]


def test_deltanet_recalls_orthonormal_keys_exactly_and_is_linear_attention_on_them():
    m = mixer("deltanet", n_heads=2, head_dim=16)
    k, ones = orthonormal(16, m), torch.ones(1, 16, 2).double()
    x = inputs(1, 16)
    (_, _, v, _, _), o = recalled(m, x, k=k, q=k, b=ones)
    assert_close(o * 16**0.5, v, 1e-12)
    (q, _, v, _, _), o = recalled(m, x, k=k, b=ones)
    q, k, v, o = (y.transpose(1, 2) for y in (q, k, v, o))
    assert_close(o * 16**0.5, (q @ k.mT).tril() @ v, 1e-12)


def test_deltanet_overwrites_what_it_held_under_the_same_key():
    m, x = mixer("deltanet"), inputs(1, 3)
    k = oracle.unit(torch.randn(1, 1, m.n_heads, m.head_dim).double()).expand(-1, 3, -1, -1)
    (_, _, v, _, _), o = recalled(m, x, k=k, q=k, b=torch.ones(1, 3, m.n_heads).double())
    assert_close(o * m.head_dim**0.5, v, 1e-5)  # the keys' norm is 1 - 1e-6 / 2
    (_, _, v, _, _), o = recalled(m, x[:, :2], k=k[:, :2], q=k[:, :2], b=torch.full((1, 2, m.n_heads), 2.0).double())
    assert_close(o[:, 1] * m.head_dim**0.5, 2 * v[:, 1] - 2 * v[:, 0], 1e-5)  # beta = 2 flips the sign of the old


def test_deltanet_is_fla_s_delta_rule():
    m, x = mixer("deltanet"), inputs(2, 40)
    (q, k, v, _, beta), o = recalled(m, x)
    naive = fla_naive("delta_rule").delta_rule_recurrence
    expected = naive(*(y.transpose(1, 2) for y in (q, k, v, beta)))[0].transpose(1, 2)
    assert_close(o, expected, 1e-6)


@pytest.mark.parametrize("name", ["gla", "deltanet", "hgrn", "hgrn2", "retnet"])
def test_decays_and_write_strengths_are_exact_in_a_bfloat16_model(name):
    m = mixer(name).bfloat16()
    inputs_, _ = recalled(m, inputs(1, 30).bfloat16())
    gate = {"deltanet": 4, "hgrn": 1}.get(name, 3)
    assert inputs_[gate].dtype == torch.float32
    assert {t.dtype for i, t in enumerate(inputs_) if t is not None and i != gate} == {torch.bfloat16}
