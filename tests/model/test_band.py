"""Attention with a sink beside its window: what is seen, what is remembered, what a recipe may say."""

import pytest
import torch
import torch.nn.functional as F

from hybridlm.lm.mixers.attention.visible import Banded
from hybridlm.lm.parts.context import Context
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close

CPU = torch.device("cpu")


def band(sink: int, window: int, name: str = "attention", **options):
    return build(pattern=[name], **{name: {"mask": {"kind": "band", "sink": sink, "window": window}, **options}})


def test_two_layers_see_the_sink_and_twice_the_window():
    model, ids = band(2, 4), tokens(1, 30)

    def reached(position: int) -> list[int]:
        changed = ids.clone()
        changed[0, position] = (changed[0, position] + 1) % 61
        difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
        return [t for t, x in enumerate(difference.tolist()) if x > 1e-6]

    assert reached(1) == list(range(1, 30))  # of the sink
    assert reached(10) == list(range(10, 10 + 7))


@torch.no_grad()
@pytest.mark.parametrize(("sink", "window"), [(0, 5), (3, 5), (20, 1), (3, 64)])
def test_decoding_in_pieces_is_masked_attention_throughout(sink, window):
    """Rows of the whole, continued by calls of several tokens and of one, far behind the ring's first turn."""
    visible, T, rng = Banded(sink, window), 60, torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, T, heads, 8, generator=rng, dtype=torch.float64) for heads in (4, 2, 2))
    t, j = torch.arange(T)[:, None], torch.arange(T)
    seen = (j <= t) & ((t - j < window) | (j < sink))
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads, seen, enable_gqa=True).transpose(1, 2)
    state = next(band(sink, window, n_heads=4, n_kv_heads=2, head_dim=8).mixers()).new_state(2, torch.float64, CPU)
    done = 0
    for size in (7, 1, 1, 12, 1, 2, *[1] * 36):
        context, part = Context.dense(2, size, (done, done), CPU), slice(done, done + size)
        found = visible.continued(state, q[:, part], k[:, part], v[:, part], None, context)
        assert_close(found, expected[:, part], 1e-12, f"tokens from {done}")
        done += size
        assert state.tensors()["k"].shape[1] == visible.slots(done) == min(done, sink + window)
    assert done == T


@torch.no_grad()
@pytest.mark.parametrize("name", ["attention", "moh"])
def test_a_long_text_decodes_as_it_was_computed_at_once(name):
    """The sink is each document's own; routed heads have it too."""
    model, ids = band(4, 9, name).eval(), tokens(2, 200)
    whole, cache, logits = model(ids).logits, True, []
    for part in (ids[:, :50], *ids[:, 50:].split(1, 1)):
        output = model(part, cache=cache)
        cache = output.cache
        logits.append(output.logits)
    assert_close(torch.cat(logits, 1), whole, 1e-5)
    packed = model(torch.cat((ids[:1, :60], ids[1:, :140]), 1), cu_seqlens=torch.tensor([0, 60, 200])).logits
    assert_close(packed[:, :60], whole[:1, :60], 1e-5)
    assert_close(packed[:, 60:], whole[1:, :140], 1e-5)


def test_a_mask_without_a_sink_is_a_window_bit_for_bit():
    ids = tokens(2, 40)
    windowed = build(pattern=["attention"], attention={"window": 7})
    assert torch.equal(band(0, 7)(ids).logits, windowed(ids).logits)
    assert band(0, 7).state_bytes(100) == windowed.state_bytes(100)
    assert band(0, 7).flops_per_token(100) == windowed.flops_per_token(100)


def test_dropout_of_weights_knows_the_sink():
    """With next to none dropped the outputs are those without."""
    ids = tokens(1, 40)
    dropped, plain = band(3, 6, dropout=1e-9).train(), band(3, 6)
    assert_close(dropped(ids).logits, plain(ids).logits, 1e-5)


def test_the_preset_is_attention_with_a_quarter_of_the_context():
    mixer = next(build(pattern=["band"], context=1024).mixers())
    assert (mixer.options.mask.sink, mixer.options.mask.window) == (64, 192)
    short = next(build(pattern=["band"], context=3).mixers())
    assert (short.options.mask.sink, short.options.mask.window) == (0, 1)
    ids = tokens(1, 50)
    whole, twin = build(pattern=["attention"]), build(pattern=["band"], band={"mask": None})
    assert torch.equal(whole(ids).logits, twin(ids).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 5, "mask": {"window": 5}}, r"attention.window: 5 beside a mask.*attention.mask.window"),
        ({"mask": {"sink": -1}}, r"sink"),
        ({"mask": {"window": 0}}, r"window"),
        ({"mask": {"kind": "bands"}}, r"kind"),
    ],
)
def test_what_a_recipe_may_not_say(options, message):
    with pytest.raises(ValueError, match=message):
        build(pattern=["attention"], attention=options)
