"""Perplexity by position: every token once, the same sums by independent ways, states carried or not."""

import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from rich.console import Console

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.eval.positions.measure import measure_positions
from hybridlm.eval.positions.reading import Reading, Stretches, modes_of, spans
from hybridlm.eval.positions.results import Positions, plot_positions
from hybridlm.lm import HybridLM
from hybridlm.lm.data.tokenizer import Tokenizer
from hybridlm.lm.parts.errors import ConfigError, DataError

from .conftest import PROSE, build

TEXT = " ".join(PROSE[:4])
MODES = ("whole", "sliding", "reset", "carry")


@pytest.fixture(scope="module")
def recurrent():
    return build("[gated_deltanet, gla]")


@pytest.fixture(scope="module")
def hybrid():
    return build("[gated_deltanet, attention]")


def measure(model, tokenizer, mode, text=TEXT, max_tokens=10_000, blocks=1, batch_tokens=8192, **how):
    stretches = Stretches.cut(tokenizer, text, max_tokens=max_tokens, blocks=blocks)
    options: dict[str, Any] = {"window": 32, "buckets": 16, "beyond": "run", **how}
    return measure_positions(model, stretches, Reading(mode, **options), batch_tokens=batch_tokens)


@torch.no_grad()
def whole_nats(model, tokenizer, text):
    """-log p of each token, from the logits of one forward."""
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
    logits = model(ids).logits[0, :-1].double()
    return -logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@given(st.integers(1, 300), st.sampled_from(MODES), st.integers(2, 70), st.data())
def test_every_token_is_scored_once_and_no_window_reads_too_much(n, mode, window, data):
    stride = data.draw(st.integers(1, window - 1))
    plan = spans(n, mode, window, stride)
    assert [i for span in plan for i in range(span.start, span.stop)] == list(range(n))
    for i, span in enumerate(plan):
        assert 0 <= span.first <= span.start < span.stop
        if mode != "whole":
            assert span.stop - span.first <= window
        if mode == "sliding" and i:
            assert span.stop - span.start <= stride
            assert span.start - span.first >= min(span.start, window - stride)
        if mode == "reset" and i:
            assert span.start - span.first == 1 or span.stop == n


def test_the_whole_text_in_chunks_equals_one_forward(model, tokenizer, monkeypatch):
    expected = whole_nats(model, tokenizer, TEXT)
    curve = measure(model, tokenizer, "whole")
    assert curve.tokens == len(expected) and curve.bytes == len(TEXT.encode())
    assert curve.nats == pytest.approx(float(expected.sum()), abs=1e-4 * len(expected))
    assert curve.bits_per_byte == pytest.approx(float(expected.sum()) / math.log(2) / len(TEXT.encode()), rel=1e-5)
    for bucket in curve.buckets:
        part = expected[bucket.start : bucket.end]
        assert bucket.n == len(part) and bucket.nats == pytest.approx(float(part.mean()), abs=1e-4)
        if bucket.n > 1:
            assert bucket.stderr == pytest.approx(float(part.std()) / math.sqrt(len(part)), rel=1e-3)
    monkeypatch.setattr("hybridlm.eval.forward.long_context.run_chunks.__defaults__", (13,))
    assert measure(model, tokenizer, "whole").nats == pytest.approx(curve.nats, abs=1e-4 * len(expected))


def test_a_carried_recurrent_state_equals_the_single_pass(recurrent, tokenizer):
    expected = whole_nats(recurrent, tokenizer, TEXT)
    for window in (2, 17, 64, 10_000):
        curve = measure(recurrent, tokenizer, "carry", window=window)
        assert abs(curve.nats - float(expected.sum())) <= 1e-4 * len(expected)


def test_carry_in_a_hybrid_lets_attention_see_its_window_and_the_state_everything(hybrid, tokenizer):
    whole = measure(hybrid, tokenizer, "whole")
    carry, reset = measure(hybrid, tokenizer, "carry"), measure(hybrid, tokenizer, "reset")
    assert measure(hybrid, tokenizer, "carry", window=10_000).nats == pytest.approx(whole.nats, rel=1e-6)
    assert carry.buckets[:2] == reset.buckets[:2]  # the first window is the same
    # by hand: the second window's tokens with the recurrent layer's state and an empty key-value cache
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(TEXT)]])
    with torch.no_grad():
        cache = hybrid(ids[:, :32], cache=True).cache
        cache.layers[1], cache.lengths = hybrid.new_cache(1).layers[1], [0]
        nats = -hybrid(ids[:, 32:64], cache=cache).logits[0].log_softmax(-1).gather(1, ids[0, 33:65, None])[:, 0]
    assert carry.buckets[2].nats == pytest.approx(float(nats[:16].mean()), abs=1e-5)
    assert carry.buckets[3].nats == pytest.approx(float(nats[16:].mean()), abs=1e-5)
    assert carry.nats != pytest.approx(whole.nats, rel=1e-5) and carry.nats != pytest.approx(reset.nats, rel=1e-5)


@pytest.mark.parametrize("window", [2, 33, 64])
@pytest.mark.parametrize("front", [True, False])
def test_reset_equals_the_harness(model, tokenizer, window, front):
    """Also for an import that is asked without BOS: lm-eval's prefix stands before the first token alone."""
    if not front:
        tokenizer = Tokenizer(tokenizer._backend, replace(tokenizer.specials, front=()))
    harness = HybridHarness(model, tokenizer, max_length=window, batch_tokens=512)
    request = Instance("loglikelihood_rolling", {}, (TEXT,), 0, ("task", 0, 1))
    (expected,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    curve = measure(model, tokenizer, "reset", window=window)
    assert curve.nats == pytest.approx(-float(expected), abs=1e-4 * curve.tokens)


def test_sliding_sees_the_context_it_promises(model, tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    window, stride = 24, 5
    expected = whole_nats(model, tokenizer, TEXT)[:window].tolist()
    with torch.no_grad():
        for start in range(window, len(ids) - 1, stride):
            stop = min(start + stride, len(ids) - 1)
            seen = [ids[0], *ids[stop - window + 1 : stop]]
            log_p = model(torch.tensor([seen])).logits[0].log_softmax(-1)
            for i, position in enumerate(range(start, stop)):
                expected.append(-float(log_p[window - (stop - start) + i, ids[position + 1]]))
    curve = measure(model, tokenizer, "sliding", window=window, stride=stride)
    assert curve.nats == pytest.approx(sum(expected), abs=1e-4 * len(expected))


@pytest.mark.parametrize("mode", MODES)
def test_batches_of_blocks_change_nothing(hybrid, tokenizer, mode):
    blocks = {"max_tokens": 70, "blocks": 4}
    one = measure(hybrid, tokenizer, mode, batch_tokens=1, **blocks)
    assert measure(hybrid, tokenizer, mode, batch_tokens=100_000, **blocks).nats == pytest.approx(one.nats, rel=1e-6)
    tokens = tokenizer.encode(TEXT)
    n = min(280, len(tokens))
    assert one.tokens == n == sum(bucket.n for bucket in one.buckets)
    alone = [
        measure(hybrid, tokenizer, mode, text=tokenizer.decode(tokens[start : start + 70])).nats
        for start in range(0, n, 70)
    ]
    assert sum(alone) == pytest.approx(one.nats, rel=1e-5)
    assert sum(bucket.nats * bucket.n for bucket in one.buckets) == pytest.approx(one.nats)
    assert [(b.start, b.end) for b in one.buckets] == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 70)]


def test_tokens_beyond_the_model_are_refused_or_counted(attention_model, recurrent, tokenizer):
    context = attention_model.config.context
    text = TEXT * 4
    n = len(tokenizer.encode(text))
    assert n > context
    with pytest.raises(ConfigError, match=f"max_tokens: {n} tokens, but .* trained to {context}"):
        measure(attention_model, tokenizer, "whole", text=text, beyond="error")
    assert measure(attention_model, tokenizer, "whole", text=text).beyond == n - context
    window = context + 40
    assert measure(attention_model, tokenizer, "sliding", text=text, window=window, stride=10).beyond > 0
    for mode in ("sliding", "reset"):
        assert measure(attention_model, tokenizer, mode, text=text, beyond="error").beyond == 0
    assert measure(recurrent, tokenizer, "whole", text=text, beyond="error").beyond == 0


def test_logits_exist_for_a_slice_at_a_time(hybrid, tokenizer, monkeypatch):
    monkeypatch.setattr("hybridlm.eval.forward.scoring.SLICE", 340 * 7)
    sizes = []
    handle = hybrid.lm_head.register_forward_hook(lambda _m, _i, y: sizes.append(y.numel() // 340))
    try:
        curve = measure(hybrid, tokenizer, "whole")
    finally:
        handle.remove()
    assert max(sizes) == 7 and sum(sizes) == curve.tokens


def test_a_model_has_the_modes_that_it_can_run(attention_model, hybrid):
    assert modes_of(hybrid, 10_000) == ["whole", "sliding", "reset", "carry"]
    assert modes_of(attention_model, 10_000) == ["whole", "sliding", "reset"]
    context = hybrid.config.context
    learned = HybridLM(hybrid.config.model_copy(update={"positions": "learned"}))
    assert modes_of(learned, context) == ["whole", "sliding", "reset", "carry"]
    assert modes_of(learned, context + 1) == ["sliding", "reset", "carry"]


def test_what_cannot_be_measured_says_so(attention_model, hybrid, tokenizer):
    with pytest.raises(ConfigError, match="no state to carry; use reset"):
        measure(attention_model, tokenizer, "carry")
    with pytest.raises(ConfigError, match=r"mode 'slide': unknown; did you mean 'sliding'\?"):
        measure(hybrid, tokenizer, "slide")
    with pytest.raises(ConfigError, match="window: 1 leaves no token"):
        measure(hybrid, tokenizer, "reset", window=1)
    with pytest.raises(ConfigError, match="stride: 32 new tokens in a window of 32; use 1 to 31"):
        measure(hybrid, tokenizer, "sliding", stride=32)
    with pytest.raises(ConfigError, match="blocks: 0"):
        measure(hybrid, tokenizer, "whole", blocks=0)
    with pytest.raises(DataError, match="is empty"):
        measure(hybrid, tokenizer, "whole", text="")
    broken = build("[attention]")
    broken.norm.weight.data.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"gives NaN; check its weights and precision; in the first 512 tokens: final norm"
    ):
        measure(broken, tokenizer, "reset")


def test_measuring_leaves_the_model_as_it_was(hybrid, tokenizer):
    hybrid.train()
    before = torch.get_rng_state()
    try:
        measure(hybrid, tokenizer, "carry")
        assert all(module.training for module in hybrid.modules())
    finally:
        hybrid.eval()
    assert torch.equal(torch.get_rng_state(), before)


def test_results_are_kept_shown_and_drawn(hybrid, tokenizer, tmp_path):
    stretches = Stretches.cut(tokenizer, TEXT, max_tokens=100, blocks=1, name="prose")
    readings = [Reading(mode, window=32, buckets=40) for mode in ("whole", "carry")]
    curves = [measure_positions(hybrid, stretches, reading) for reading in readings]
    positions = Positions(curves, "step-000003")
    positions.save(tmp_path / "a" / "positions.json")
    assert Positions.load(tmp_path / "a" / "positions.json") == positions
    content = json.loads((tmp_path / "a" / "positions.json").read_text())
    assert (content["kind"], content["checkpoint"]) == ("positions", "step-000003")
    expected = {"text", "mode", "bytes", "tokens", "nats", "bits_per_byte", "buckets"}
    assert expected <= content["curves"][0].keys()
    assert content["curves"][0]["buckets"][0].keys() == {"start", "end", "nats", "stderr", "n"}
    assert positions.values()["prose/carry/last_nats"] == positions.curves[1].buckets[-1].nats
    out = io.StringIO()
    Console(file=out, width=200).print(positions.table())
    assert "80-99" in out.getvalue() and "bits per byte" in out.getvalue()
    assert plot_positions(positions, tmp_path / "b.svg").stat().st_size > 3000
    assert positions.plot(tmp_path) == tmp_path / "positions.png"
    assert (tmp_path / "positions.png").stat().st_size > 3000


def test_curves_that_differ_in_how_they_were_taken_do_not_replace_each_other(hybrid, tokenizer, tmp_path):
    def curve(blocks: int, stride: int, buckets: int = 40) -> Positions:
        stretches = Stretches.cut(tokenizer, TEXT, max_tokens=96 // blocks, blocks=blocks, name="prose")
        return Positions([measure_positions(hybrid, stretches, Reading("sliding", 16, buckets, stride))])

    path = tmp_path / "positions.json"
    for taken in (curve(1, 8), curve(1, 4), curve(2, 4), curve(2, 4, buckets=20), curve(2, 4, buckets=20)):
        taken.save(path)
    kept = {file.name: Positions.load(file).curves[0] for file in tmp_path.iterdir()}
    assert {name: (one.how, one.tokens, len(one.buckets)) for name, one in kept.items()} == {
        "positions-1.json": ("sliding 16, 8 new", 96, 3),
        "positions-2.json": ("sliding 16, 4 new", 96, 3),
        "positions-3.json": ("sliding 16, 4 new", 96, 2),
        "positions.json": ("sliding 16, 4 new", 96, 3),
    }
