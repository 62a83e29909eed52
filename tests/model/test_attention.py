"""Attention against a dense softmax in float64: grouped queries, windows, packing; RoPE against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.kernels.softmax_attention import causal_attention
from hybridlm.lm.parts.rope import cos_sin, inverse_frequencies, rotate
from hybridlm.lm.parts.rope_config import RopeConfig
from hybridlm.tests.model.helpers import build, small, tokens
from hybridlm.tests.oracles import assert_close


def oracle(q: Tensor, k: Tensor, v: Tensor, window: int | None, lengths: list[int]) -> Tensor:
    """Row by row of the definition, one sequence after another of [1, sum of lengths, H, D]."""
    group, out, start = q.shape[2] // k.shape[2], [], 0
    for length in lengths:
        for t in range(start, start + length):
            first = start if window is None else max(start, t - window + 1)
            for h in range(q.shape[2]):
                scores = k[0, first : t + 1, h // group] @ q[0, t, h] / math.sqrt(q.shape[-1])
                out.append(scores.softmax(0) @ v[0, first : t + 1, h // group])
        start += length
    return torch.stack(out).view_as(q)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 3, 8]),
)
def test_attention_is_its_definition(lengths, heads, window):
    rng = torch.Generator().manual_seed(0)
    H, H_kv = heads
    q, k, v = (torch.randn(1, sum(lengths), n, 5, generator=rng, dtype=torch.float64) for n in (H, H_kv, H_kv))
    found = causal_attention(q, k, v, sequences=Sequences.documents(lengths), window=window)
    assert_close(found, oracle(q, k, v, window, lengths), 1e-12)


@pytest.mark.parametrize("window", [1, 5, 16, 40])
def test_windowed_rows_equal_the_packed_ones(window):
    q, k, v = torch.randn(3, 2, 33, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = causal_attention(q, k, v, sequences=Sequences(*q.shape[:2]), window=window)
    for row in range(2):
        one = slice(row, row + 1)
        assert_close(found[one], oracle(q[one], k[one], v[one], window, [33]), 1e-12)


def test_a_window_as_long_as_the_sequence_is_no_window():
    ids = tokens(2, 30)
    full, wide = build(pattern=["attention"]), build(pattern=["attention"], attention={"window": 30})
    narrow = build(pattern=["attention"], attention={"window": 29})
    assert torch.equal(full(ids).logits, wide(ids).logits)
    assert_close(narrow(ids).logits[:, :29], full(ids).logits[:, :29], 1e-5)
    assert not torch.allclose(narrow(ids).logits[:, 29], full(ids).logits[:, 29])


def test_two_windowed_layers_see_exactly_twice_the_window():
    model, ids = build(pattern=["attention"], attention={"window": 5}), tokens(1, 20)
    changed = ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 61
    difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
    assert difference[3 : 3 + 9].amin() > 1e-6  # 4 tokens further per layer
    assert difference[12:].amax() < 1e-6 and difference[:3].amax() == 0


@pytest.mark.parametrize(
    ("d_model", "options", "head_dim", "n_heads"),
    [
        (768, {}, 64, 12),
        (256, {}, 64, 4),
        (128, {}, 32, 4),
        (32, {}, 16, 2),
        (72, {}, 18, 4),
        (768, {"n_heads": 6}, 128, 6),
        (768, {"head_dim": 96}, 96, 8),
        (768, {"head_dim": 64, "n_heads": 4}, 64, 4),
    ],
)
def test_sizes_follow_from_the_width(d_model, options, head_dim, n_heads):
    spec = small(d_model=d_model, pattern=["attention"], attention=options).layer_specs()[0]
    assert (spec.options.head_dim, spec.options.n_heads) == (head_dim, n_heads)


@pytest.mark.parametrize("qk_norm", ["head", "full"])
def test_query_key_norm_makes_scores_blind_to_scale(qk_norm):
    model, ids = build(pattern=["attention"], attention={"qk_norm": qk_norm}), tokens(1, 20)
    before = model(ids).logits
    with torch.no_grad():
        for mixer in model.mixers():
            q = mixer.n_heads * mixer.head_dim
            mixer.qkv_proj.weight[:q] *= 3.0
            mixer.qkv_proj.weight[q : 2 * q] *= 0.5
    assert_close(model(ids).logits, before, 1e-3)  # the norm's eps of 1e-6 beside mean squares near 0.1


# rotary positions


def test_rotation_is_multiplication_by_a_complex_number():
    frequencies = inverse_frequencies(RopeConfig(theta=100.0), 6)
    assert frequencies.tolist() == pytest.approx([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)], rel=1e-6)
    x = torch.randn(2, 7, 3, 6)
    positions = torch.arange(7) + torch.tensor([[0], [50]])
    found = rotate(x, *cos_sin(frequencies, positions))
    turn = torch.polar(torch.ones(2, 7, 1, 3), (positions[..., None] * frequencies)[:, :, None])
    expected = torch.complex(x[..., :3], x[..., 3:]) * turn
    assert_close(found, torch.cat((expected.real, expected.imag), -1), 1e-6)


def test_scores_depend_on_distance_alone():
    frequencies = inverse_frequencies(RopeConfig(), 16)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)

    def score(at_q: int, at_k: int) -> Tensor:
        rows = [rotate(x, *cos_sin(frequencies, torch.tensor([[at]]))) for x, at in ((q, at_q), (k, at_k))]
        return (rows[0] * rows[1]).sum()

    assert score(12, 5) == pytest.approx(score(107, 100).item(), abs=1e-4)
    assert score(12, 5) != pytest.approx(score(12, 6).item(), abs=1e-4)


def test_rotation_keeps_dtype_and_computes_in_float32():
    x = torch.randn(1, 4, 1, 8)
    cos, sin = cos_sin(inverse_frequencies(RopeConfig(), 8), torch.tensor([[1000, 2000, 3000, 4000]]))
    low = rotate(x.bfloat16(), cos, sin)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, rotate(x.bfloat16().float(), cos, sin).bfloat16())


def test_llama3_scaling_keeps_fast_turns_and_stretches_slow_ones():
    plain = inverse_frequencies(RopeConfig(theta=5e5), 128)
    scaled = inverse_frequencies(RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_context=8192), 128)
    wavelength = 2 * math.pi / plain
    assert torch.equal(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
    slow = wavelength > 8192
    assert_close(scaled[slow], plain[slow] / 8, 1e-6)
    between = ~slow & (wavelength > 8192 / 4)
    assert (scaled[between] < plain[between]).all() and (scaled[between] > plain[between] / 8).all()
    assert (scaled.diff() < 0).all()
