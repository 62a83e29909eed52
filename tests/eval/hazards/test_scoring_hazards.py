"""Hazards of the harness itself: batches, tokens at the boundary, memory, caches, truncation, NaN."""

import copy
import random

import pytest
import torch

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.eval.benchmarks.response_cache import ResponseCache, fingerprint
from hybridlm.eval.forward import budgets as memory
from hybridlm.eval.forward.budgets import automatic_batch_tokens
from hybridlm.eval.forward.scoring import Window, inference, score_windows, split_windows
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.errors import ConfigError, NaNError

from .conftest import small
from .live_bytes import LiveBytes

HYBRID = tuple(MIXERS)
SHOTS = (1, *range(40, 60))


def questions(seed: int = 0) -> list[Window]:
    """Answers that share examples, questions and first words; and two texts on their own."""
    rng = random.Random(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(3, 97), k=n))

    windows = [Window((1,), draw(30)), Window((1,), draw(3))]
    for _ in range(3):
        context, stem = SHOTS + draw(12), draw(9)
        windows += [Window(context, answer) for answer in (stem + draw(2), stem + draw(4), draw(6), draw(1))]
    return windows


@torch.no_grad()
def plain(model: HybridLM, window: Window) -> tuple[float, bool]:
    log_p = model(torch.tensor([window.inputs])).logits[0, len(window.context) - 1 :].double().log_softmax(-1)
    right = log_p[range(len(window.targets)), window.targets]
    return float(right.sum()), log_p.argmax(-1).tolist() == list(window.targets)


def score(model: HybridLM, windows: list[Window], batch_tokens: int = 8192, share: bool = True):
    with inference(model):
        found = dict(score_windows(model, windows, batch_tokens, share))
    return [found[i] for i in range(len(windows))]


def test_h11_texts_are_scored_once_whatever_the_batches(any_model):
    """Windows that start anew are lm-eval's; a text that fits is one pass, and sums do not know the batch size."""
    texts = [tuple(random.Random(i).choices(range(3, 97), k=n)) for i, n in enumerate((50, 7, 33, 16))]
    cuts = [split_windows([], text, (1,), 64) for text in texts]
    assert [len(cut) for cut in cuts] == [1] * 4
    for (window,), found in zip(cuts, score(any_model, [cut[0] for cut in cuts], 64), strict=True):
        assert found.log_likelihood == pytest.approx(plain(any_model, window)[0], rel=1e-5)
    windows = [window for text in texts for window in split_windows([], text, (1,), 16)]
    assert sum(len(window.targets) for window in windows) == 50 + 7 + 33 + 16
    sums = [sum(part.log_likelihood for part in score(any_model, windows, budget)) for budget in (16, 50, 999)]
    assert sums == [pytest.approx(sums[0], rel=1e-6)] * 3


@pytest.mark.parametrize("share", [True, False])
def test_h07_scores_do_not_depend_on_batches_order_or_sharing(any_model, share):
    """lm-evaluation-harness issues 335, 704, 879, 1645."""
    windows = questions()
    expected = [plain(any_model, window) for window in windows]
    for batch_tokens in (40, 90, 8192):
        order = random.Random(batch_tokens).sample(range(len(windows)), len(windows))
        for i, found in zip(order, score(any_model, [windows[i] for i in order], batch_tokens, share), strict=True):
            assert found.log_likelihood == pytest.approx(expected[i][0], rel=1e-5, abs=1e-5)
            assert found.greedy == expected[i][1]


def test_h12_a_cut_context_is_counted_or_refused(attention_model, tokenizer, requests):
    """A limit of 2048 that nobody asked for drops the needle in silence."""
    context, answer = "The value of the valley is that water runs downhill", " and every visitor"
    asked = requests("loglikelihood", [("The", " value"), (context, answer)], "piqa")
    size = len(tokenizer.encode(context + answer))
    for max_length, cut in ((size, 0), (size - 1, 1)):
        harness = HybridHarness(attention_model, tokenizer, max_length=max_length)
        harness.loglikelihood(asked)
        assert harness.max_length == max_length and harness.truncated["piqa"] == cut
    strict = HybridHarness(attention_model, tokenizer, max_length=size - 1, on_long="error")
    message = f"^task 'piqa', document 1: {size} tokens, but max_length={size - 1} has room for {size - 1}; raise it"
    with pytest.raises(ConfigError, match=message):
        strict.loglikelihood(asked)
    generate = requests("generate_until", [(context, {"until": [], "max_gen_toks": 5})], "nq")
    with pytest.raises(
        ConfigError, match=r"^task 'nq', document 0: .* or let contexts be cut with on_long='truncate'$"
    ):
        HybridHarness(attention_model, tokenizer, max_length=12, on_long="error").generate_until(generate)


@pytest.mark.parametrize("batch_tokens", [64, 150, 600])
def test_h14_no_forward_holds_more_than_the_budget(any_model, batch_tokens):
    """Rows padded to the longest, with what their states have seen; nothing is tried until it fails (issue 1678)."""
    seen = []

    def watch(_module, _args, kwargs):
        past = kwargs["cache"].lengths if kwargs["cache"] not in (None, True) else [0] * 9999
        lengths = [new + old for new, old in zip(kwargs["cu_seqlens"].diff().tolist(), past, strict=False)]
        seen.append(max(lengths) * len(lengths))

    hook = any_model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        score(any_model, questions(), batch_tokens)
    finally:
        hook.remove()
    assert max(seen) <= batch_tokens and len(seen) >= 2


@pytest.mark.parametrize("max_length", [32, 256])
def test_h14_automatic_batches_fit_the_free_memory(any_model, max_length, monkeypatch):
    """Memory that tensors really held, against the share of the free memory that activations and states may have."""
    free = 2 * (memory.LOGITS + 200_000 * max_length)
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    tokens = automatic_batch_tokens(any_model, max_length)
    assert max_length <= tokens < memory.MOST
    rng = random.Random(0)
    shots = (1, *rng.choices(range(3, 97), k=max_length // 2 - 1))
    contexts = [shots + tuple(rng.choices(range(3, 97), k=max_length // 4)) for _ in range(tokens // max_length + 1)]
    answers = [tuple(rng.choices(range(3, 97), k=max_length // 4)) for _ in range(3)]
    with LiveBytes() as live:
        score(any_model, [Window(context, answer) for context in contexts for answer in answers], tokens)
    assert live.peak <= memory.SHARE * free - memory.LOGITS
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2 * memory.LOGITS)
    with pytest.raises(ConfigError, match=r"^batch_tokens: 'auto' finds 0.20 GB free, and one sequence of max_length="):
        automatic_batch_tokens(any_model, max_length)


def test_h15_every_beginning_that_is_worth_it_is_computed_once(any_model):
    """Contexts computed again for each answer: lm-evaluation-harness issue 1351."""
    windows = questions()
    counted = []
    hook = any_model.embed.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].numel()))
    try:
        shared = score(any_model, windows)
        with_sharing, counted[:] = sum(counted), []
        alone = score(any_model, windows, share=False)
    finally:
        hook.remove()
    assert sum(counted) == sum(len(window.inputs) for window in windows)
    stems = 3 * (12 + 9 + 1 + 3 + 5)  # of each question: itself, the common first words, three rests
    assert with_sharing == len(SHOTS) + stems + 30 + 3
    for mine, other in zip(shared, alone, strict=True):
        assert mine.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5, abs=1e-5)
        assert mine.greedy == other.greedy


def test_h16_another_model_misses_the_response_cache(attention_model, tokenizer, requests, tmp_path):
    """lm-eval's cache has no model in its key: B got A's perplexity."""
    other = copy.deepcopy(attention_model)
    with torch.no_grad():
        other.norm.weight[0] += 0.5
    rolling = requests("loglikelihood_rolling", [("The value of the valley",), ("She said",)])

    def run(model, **how):
        harness = HybridHarness(model, tokenizer, **({"max_length": 64} | how), responses=tmp_path)
        calls = []
        hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            return harness.loglikelihood_rolling(rolling), len(calls)
        finally:
            hook.remove()

    first, computed = run(attention_model)
    again, none = run(attention_model)
    different, misses = run(other)
    assert (computed > 0, none, misses > 0) == (True, 0, True)
    assert again == first != different
    plainly = HybridHarness(other, tokenizer, max_length=64).loglikelihood_rolling(rolling)
    assert different == plainly
    assert run(attention_model, max_length=32)[1] > 0
    prints = {fingerprint(m, tokenizer) for m in (attention_model, other, copy.deepcopy(attention_model).bfloat16())}
    assert len(prints) == 3 and fingerprint(copy.deepcopy(attention_model), tokenizer) in prints


def test_h16_an_interrupted_evaluation_goes_on(attention_model, tokenizer, requests, tmp_path, monkeypatch):
    texts = [(f"The value of the valley number {i}",) for i in range(9)]
    asked = requests("loglikelihood_rolling", texts)
    expected = HybridHarness(attention_model, tokenizer, max_length=64).loglikelihood_rolling(asked)
    whole, added = ResponseCache.add, []

    def add(self, request, answer):
        if len(added) == 5:
            raise KeyboardInterrupt
        added.append(request)
        whole(self, request, answer)

    harness = HybridHarness(attention_model, tokenizer, max_length=64, batch_tokens=64, responses=tmp_path)
    monkeypatch.setattr(ResponseCache, "add", add)
    with pytest.raises(KeyboardInterrupt):
        harness.loglikelihood_rolling(asked)
    monkeypatch.setattr(ResponseCache, "add", lambda self, request, answer: added.append(request))
    assert harness.loglikelihood_rolling(asked) == pytest.approx(expected, rel=1e-5)
    assert len(added) == 9 and len(set(added)) == 9


def test_h24_sums_of_log_softmax_keep_their_digits(any_model):
    """float32 against float64 of the same logits and of the whole model."""
    windows = questions()
    exact = copy.deepcopy(any_model).double()
    for mine, window in zip(score(any_model, windows), windows, strict=True):
        assert mine.log_likelihood == pytest.approx(plain(exact, window)[0], abs=1e-4 * len(window.targets))


def test_h26_logits_of_a_large_vocabulary_never_exist_whole():
    """4096 tokens, 128k vocabulary: the logits of the sequence would take 2.1 GB, of the 512 targets 268 MB."""
    torch.manual_seed(0)
    sizes = ["model.n_layers=1", "model.d_model=16", "model.vocab_size=131072", "model.context=4096"]
    model = HybridLM(Recipe.load("demo", overrides=[*sizes, "model.pattern=[attention]"]).model)
    ids = torch.randint(2, 131072, (4096,)).tolist()
    with LiveBytes() as live:
        score(model, [Window((1, *ids[:3584]), tuple(ids[3584:]))])
    assert live.peak < 130e6  # three slices of 32 MiB and the activations


@pytest.mark.parametrize("layer", range(len(HYBRID)))
def test_nan_says_which_document_and_layer(tokenizer, requests, layer):
    sizes = [f"model.n_layers={len(HYBRID)}", "model.d_model=32", f"model.vocab_size={tokenizer.vocab_size}"]
    model = HybridLM(Recipe.load("demo", overrides=[*sizes, f"model.pattern=[{', '.join(HYBRID)}]"]).model)
    with torch.no_grad():
        for weight in list(model.mixers())[layer].parameters():
            weight.fill_(float("nan"))
    asked = requests("loglikelihood", [("The value", " of it")], "piqa")
    expected = (
        rf"^the model gives NaN.*; task 'piqa', document 0: first in mixer of layer {layer} \({HYBRID[layer]}\), "
    )
    with pytest.raises(NaNError, match=expected + r"token \d+$"):
        HybridHarness(model, tokenizer, max_length=64).loglikelihood(asked)
    asked = requests("generate_until", [("The value", {"until": [], "max_gen_toks": 4, "do_sample": False})], "piqa")
    with pytest.raises(NaNError, match=expected + r"token \d+$"):
        HybridHarness(model, tokenizer, max_length=64).generate_until(asked)


def test_sharing_holds_for_a_hybrid_of_every_mixer():
    windows = questions(seed=3)
    for found, window in zip(score(small(HYBRID), windows, 100), windows, strict=True):
        assert found.log_likelihood == pytest.approx(plain(small(HYBRID), window)[0], rel=1e-5, abs=1e-5)
