import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from tqdm import tqdm

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.model import ModelConfig

CONTEXTS = ["The value of the valley", "Question: which floats?\nAnswer:", "", "She said", "naïve café", "The violin"]
ANSWERS = [" oak", " the door was closed", "\nand", " is 305", " über", "."]
PAIRS = [(context, answer) for context in CONTEXTS for answer in ANSWERS]


def requests(kind, arguments, task="t"):
    return [Instance(kind, {}, args, i, metadata=(task, i, 1)) for i, args in enumerate(arguments)]


def harness(model, tokenizer, max_length=64, **how):
    return HybridHarness(model, tokenizer, max_length=max_length, **how)


def log_p(model, ids):
    """log p of every token after the first [T - 1, V], one sequence, float64."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


def plain(model, tokenizer, context, continuation):
    """log p(continuation | context) from the joined text in one forward, if a token ends where the context does."""
    before, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    assert whole[: len(before)] == before
    ids = [tokenizer.bos_id, *whole]
    scores = log_p(model, ids)[range(len(whole)), whole]
    return float(scores[len(before) :].sum())


def test_loglikelihood_equals_one_forward_per_request(model, tokenizer):
    found = harness(model, tokenizer).loglikelihood(requests("loglikelihood", PAIRS))
    for (context, answer), (log_likelihood, _) in zip(PAIRS, found, strict=True):
        assert log_likelihood == pytest.approx(plain(model, tokenizer, context, answer), abs=1e-4)


def test_results_do_not_depend_on_batches_or_order(model, tokenizer):
    """Complaints of scores that change with the batch size: lm-evaluation-harness issues 335, 704, 879 and 1645."""
    expected = harness(model, tokenizer, batch_tokens=64).loglikelihood(requests("loglikelihood", PAIRS))
    for batch_tokens in (100, 300, 8192):
        order = random.Random(batch_tokens).sample(range(len(PAIRS)), len(PAIRS))
        shuffled = requests("loglikelihood", [PAIRS[i] for i in order])
        found = harness(model, tokenizer, batch_tokens=batch_tokens).loglikelihood(shuffled)
        for i, (log_likelihood, greedy) in zip(order, found, strict=True):
            assert log_likelihood == pytest.approx(expected[i][0], abs=1e-4)
            assert greedy == expected[i][1]


def test_space_between_context_and_continuation_belongs_to_the_continuation(attention_model, tokenizer):
    scorer = harness(attention_model, tokenizer)
    pairs = [("The value ", "of it"), ("The value", " of it"), ("The value\n ", "of it"), ("The value", "\n of it")]
    a, b, c, d = scorer.loglikelihood(requests("loglikelihood", pairs))
    assert a == b and c == d and a != c


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("The value of è\n\t 305ü😀"), min_size=1, max_size=30), cut=st.integers(0, 29))
def test_every_continuation_has_tokens_and_nothing_is_lost(attention_model, tokenizer, text, cut):
    """A token that spans the boundary left no token to score: lm-evaluation-harness issues 1053, 1297 and 3336."""
    cut = min(cut, len(text) - 1)
    tokens = harness(attention_model, tokenizer)._encode(text[:cut], text[cut:])
    assert tokens.continuation
    assert tokenizer.decode(tokens.context + tokens.continuation) == text
    assert tokens.apart or tokens.context + tokens.continuation == tokenizer.encode(text)


def test_token_across_the_boundary_is_counted_and_scored_after_the_whole_context(attention_model, tokenizer):
    def spans(cut):
        before = tokenizer.encode("The value"[:cut])
        return tokenizer.encode("The value")[: len(before)] != before

    context = "The value"[: next(cut for cut in range(1, 9) if spans(cut))]
    answer = "The value"[len(context) :]
    scorer = harness(attention_model, tokenizer)
    found = scorer.loglikelihood(requests("loglikelihood", [(context, answer), ("The", " value")]))
    assert scorer.apart["t"] == 1
    before, after = tokenizer.encode(context), tokenizer.encode(answer)
    scores = log_p(attention_model, [tokenizer.bos_id, *before, *after])
    expected = scores[range(len(before), len(before) + len(after)), after].sum()
    assert found[0][0] == pytest.approx(float(expected), abs=1e-4)


def test_empty_continuation_is_refused_before_anything_is_computed(attention_model, tokenizer):
    with pytest.raises(
        ConfigError, match=r"^request whose context ends in 'Answer:': the continuation to score is empty$"
    ):
        harness(attention_model, tokenizer).loglikelihood(requests("loglikelihood", [("Answer:", "")]))


def test_truncation_keeps_bos_and_the_nearest_context_and_is_counted(attention_model, tokenizer):
    context, answer = "The value of the valley is that water runs downhill", " and every visitor"
    before, whole = tokenizer.encode(context), tokenizer.encode(context + answer)
    after = whole[len(before) :]
    fits = len(whole)
    scorer = harness(attention_model, tokenizer, max_length=fits)
    scorer.loglikelihood(requests("loglikelihood", [(context, answer)]))
    assert scorer.truncated["t"] == 0

    scorer = harness(attention_model, tokenizer, max_length=fits - 3)
    found = scorer.loglikelihood(requests("loglikelihood", [(context, answer), ("The", " value")]))
    assert scorer.truncated["t"] == 1
    ids = [tokenizer.bos_id, *before[3:], *after]
    expected = log_p(attention_model, ids)[range(len(before) - 3, len(ids) - 1), after].sum()
    assert found[0][0] == pytest.approx(float(expected), abs=1e-4)


def test_rolling_is_the_single_pass_sum_when_it_fits(model, tokenizer):
    texts = ["The value of the valley.", "", "She said\nthe violin was too loud"]
    found = harness(model, tokenizer, max_length=128).loglikelihood_rolling(
        requests("loglikelihood_rolling", [(t,) for t in texts])
    )
    for text, log_likelihood in zip(texts, found, strict=True):
        assert log_likelihood == pytest.approx(plain(model, tokenizer, "", text) if text else 0.0, abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [16, 50, 8192])
def test_rolling_windows_start_with_bos_and_score_each_token_once(model, tokenizer, batch_tokens):
    """Later windows without BOS: lm-evaluation-harness issue 2382. 16 tokens, then 15 after BOS and one token."""
    text = "The value of the valley is that water runs downhill, and every visitor values it."
    ids, bos = tokenizer.encode(text), tokenizer.bos_id
    assert len(ids) > 32
    expected = float(log_p(model, [bos, *ids[:16]])[range(16), ids[:16]].sum())
    for start in range(16, len(ids), 15):
        new = ids[start : start + 15]
        context = ids[start + len(new) - 16 : start]
        scores = log_p(model, [bos, *context, *new])
        expected += float(scores[range(len(context), len(context) + len(new)), new].sum())
    scorer = harness(model, tokenizer, max_length=16, batch_tokens=batch_tokens)
    assert scorer.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)])) == [
        pytest.approx(expected, abs=1e-3)
    ]


def test_bos_is_the_first_token_of_every_sequence_and_only_there(model, tokenizer):
    """Missing or doubled BOS: lm-evaluation-harness PR 1465 and issue 3333."""
    starts = []

    def watch(_module, args, kwargs):
        ids, mask, continued = args[0], kwargs.get("attention_mask"), kwargs.get("cache")
        if not isinstance(continued, bool | None):  # goes on from a state
            assert tokenizer.bos_id not in ids
        elif kwargs.get("cu_seqlens") is not None:
            starts.extend(row.tolist() for row in ids[0].split(kwargs["cu_seqlens"].diff().tolist()))
        else:
            starts.extend(row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True))

    hook = model.register_forward_pre_hook(watch, with_kwargs=True)
    scorer = harness(model, tokenizer, max_length=16)
    try:
        scorer.loglikelihood(requests("loglikelihood", PAIRS))
        scorer.loglikelihood_rolling(requests("loglikelihood_rolling", [("The value of the valley is water",)]))
        scorer.generate_until(requests("generate_until", [(c, {"until": ["\n"], "max_gen_toks": 3}) for c in CONTEXTS]))
    finally:
        hook.remove()
    assert len(starts) > len(CONTEXTS) + 3
    assert all(row[0] == tokenizer.bos_id and row.count(tokenizer.bos_id) == 1 for row in starts)


def test_generation_equals_one_prompt_at_a_time(model, tokenizer):
    """Unequal prompts are padded on the left; recurrent state must not see it (mamba issue 66)."""
    arguments = [(context, {"until": [], "max_gen_toks": 9}) for context in CONTEXTS]
    found = harness(model, tokenizer).generate_until(requests("generate_until", arguments))
    for context, text in zip(CONTEXTS, found, strict=True):
        prompt = [tokenizer.bos_id, *tokenizer.encode(context)]
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), 9, temperature=0.0, stop_ids=(tokenizer.eos_id,))[0].tolist()
        new = ids[len(prompt) :]
        new = new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new
        assert text == tokenizer.decode(new)


class Script(torch.nn.Module):
    """Stands in for a model: continues any prompt with the given tokens, then with EOS."""

    device = torch.device("cpu")
    config = ModelConfig(pattern=["gated_deltanet"])

    def __init__(self, tokens, eos_id=2):
        super().__init__()
        self.tokens, self.eos_id, self.drawn = tokens, eos_id, 0

    def forward(self, ids, attention_mask=None, cache=None):
        left = self.tokens[self.drawn :]
        self.drawn += 1
        token = torch.tensor(left[0] if left else self.eos_id)
        logits = torch.nn.functional.one_hot(token, 340).float().expand(*ids.shape, -1)
        return SimpleNamespace(logits=logits, cache=cache)


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (["over"], "water runs "),
        (["ns ov"], "water ru"),  # begins and ends inside tokens
        (["hill", "runs"], "water "),  # the first in the text, not in the list
        (["r r", "nowhere"], "wate"),
        ([], "water runs over the hill"),
        ([""], "water runs over the hill"),
        (["water"], ""),
    ],
)
def test_text_is_cut_before_the_first_stop(tokenizer, until, expected):
    """Stops in the middle of a text, or deleted instead of cut at, or run past. The text arrives letter by letter."""
    script = Script([token for letter in "water runs over the hill" for token in tokenizer.encode(letter)])
    [text] = harness(script, tokenizer).generate_until(
        requests("generate_until", [("The", {"until": until, "max_gen_toks": 40})])
    )
    assert text == expected


def test_generation_ends_at_the_stop(tokenizer):
    letters = [token for letter in "ab\ncdef" for token in tokenizer.encode(letter)]
    script = Script(letters)
    options = {"until": ["\n"], "max_gen_toks": 40}
    assert harness(script, tokenizer).generate_until(requests("generate_until", [("x", options), ("yy", options)])) == [
        "ab",
        "ab",
    ]
    assert script.drawn == 3


def test_a_stop_of_several_bytes_and_broken_bytes(tokenizer):
    snowman = tokenizer.encode("☃")
    assert len(snowman) > 1  # not in the vocabulary: bytes
    script = Script([*tokenizer.encode(" a"), *snowman, *tokenizer.encode("b")])
    task = [("x", {"until": ["☃"], "max_gen_toks": 40})]
    assert harness(script, tokenizer).generate_until(requests("generate_until", task)) == [" a"]
    script = Script([*tokenizer.encode(" a"), *snowman[:2]])
    assert harness(script, tokenizer).generate_until(requests("generate_until", task)) == [" a\ufffd\ufffd"]


def test_eos_ends_a_text_and_max_gen_toks_bounds_it(tokenizer):
    script = Script([*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("b")])
    assert harness(script, tokenizer).generate_until(requests("generate_until", [("x", {"max_gen_toks": 5})])) == ["a"]
    script = Script(tokenizer.encode("a") * 9)
    assert harness(script, tokenizer).generate_until(requests("generate_until", [("x", {"max_gen_toks": 5})])) == [
        "aaaaa"
    ]


def test_generation_leaves_room_and_counts_the_cut(attention_model, tokenizer):
    context = "The value of the valley is that water runs downhill"
    scorer = harness(attention_model, tokenizer, max_length=20)
    lengths = []
    hook = attention_model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    try:
        scorer.generate_until(requests("generate_until", [(context, {"max_gen_toks": 8})]))
    finally:
        hook.remove()
    assert lengths[0] == 12 and scorer.truncated["t"] == 1
    message = r"^task 't', document 0: max_gen_toks=19 leaves no room .* max_length=20; raise it to 21 or more"
    with pytest.raises(ConfigError, match=message):
        scorer.generate_until(requests("generate_until", [(context, {"max_gen_toks": 19})]))


def test_unknown_generation_option_is_refused(attention_model, tokenizer):
    with pytest.raises(ConfigError, match=r"^generation_kwargs: 'top_q' is not supported; did you mean 'top_p'\?$"):
        harness(attention_model, tokenizer).generate_until(requests("generate_until", [("x", {"top_q": 1})]))


def test_sampling_depends_on_the_seed_alone(model, tokenizer):
    options = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    arguments = [(context, options) for context in CONTEXTS]

    def sample(**how):
        return harness(model, tokenizer, **how).generate_until(requests("generate_until", arguments))

    assert sample() == sample(batch_tokens=64)
    assert sample() != sample(seed=100)


@pytest.mark.parametrize(("progress", "disable"), [(False, True), (True, None)])
def test_a_bar_counts_every_request_on_a_terminal_alone(attention_model, tokenizer, monkeypatch, progress, disable):
    bars = []

    class Bar(tqdm):
        def __init__(self, *given, **how):
            bars.append((self, how["disable"]))
            super().__init__(*given, **{**how, "disable": False, "file": io.StringIO()})

    monkeypatch.setattr("hybridlm.eval.benchmarks.harness.tqdm", Bar)
    scorer = harness(attention_model, tokenizer, progress=progress)
    scorer.loglikelihood(requests("loglikelihood", PAIRS))
    scorer.generate_until(requests("generate_until", [("x", {"max_gen_toks": 4}), ("y", {"max_gen_toks": 2})]))
    assert [(bar.n, bar.total, given) for bar, given in bars] == [(len(PAIRS),) * 2 + (disable,), (2, 2, disable)]


def test_mode_and_random_state_are_left_alone(model, tokenizer):
    """In-loop scoring must not change the training that goes on after it."""
    model.train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    scorer = harness(model, tokenizer)
    try:
        scorer.loglikelihood(requests("loglikelihood", PAIRS))
        scorer.loglikelihood_rolling(requests("loglikelihood_rolling", [("The value",)]))
        scorer.generate_until(
            requests("generate_until", [("x", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 4})])
        )
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and (np.random.get_state()[1] == states[2]).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_length": 1}, "max_length: 1 leaves no room for a token beside BOS; use 2 or more"),
        (
            {"batch_tokens": 32},
            "batch_tokens: 32 is below max_length=64; one sequence must fit, raise the one or lower the other",
        ),
    ],
)
def test_impossible_sizes_are_refused(attention_model, tokenizer, how, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        harness(attention_model, tokenizer, **how)
