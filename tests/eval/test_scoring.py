import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.forward.scoring import Window, batches, inference, score_windows, split_windows

BOS = 1
TOKENS = st.lists(st.integers(10, 99), max_size=30)


@torch.no_grad()
def plain_score(model, context, targets):
    """One forward per sequence, nothing shared: sum of log p in float64, and whether all are the likeliest."""
    ids = torch.tensor([[*context, *targets]])
    log_p = model(ids).logits[0].double().log_softmax(-1)[len(context) - 1 : -1]
    return float(log_p[range(len(targets)), targets].sum()), log_p.argmax(-1).tolist() == list(targets)


def random_windows(n, seed=0, longest=20):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(3, 340, (length,), generator=generator).tolist())

    return [Window((BOS, *draw(0, longest)), draw(1, longest)) for _ in range(n)]


@given(context=TOKENS, targets=TOKENS, max_length=st.integers(2, 12))
def test_every_target_is_scored_once_in_windows_that_fit(context, targets, max_length):
    windows = split_windows(context, targets, (BOS,), max_length)
    assert [token for window in windows for token in window.targets] == targets
    seen = list(context)
    for window in windows:
        assert len(window.inputs) <= max_length
        assert window.context[0] == BOS and BOS not in window.context[1:] + window.targets
        before = list(window.context[1:])
        assert before == seen[len(seen) - len(before) :]
        # as much as fits: a longer context would break the limit
        assert len(before) == len(seen) or len(window.inputs) == max_length
        assert before or not seen or len(window.targets) == max_length
        seen += window.targets


def test_window_lengths_by_hand():
    assert split_windows([], [5, 6, 7], (BOS,), 3) == [Window((BOS,), (5, 6, 7))]
    assert split_windows([], [5, 6, 7, 8, 9, 4], (BOS,), 3) == [
        Window((BOS,), (5, 6, 7)),
        Window((BOS, 7), (8, 9)),
        Window((BOS, 8, 9), (4,)),
    ]
    assert split_windows([5, 6, 7, 8], [9], (BOS,), 3) == [Window((BOS, 7, 8), (9,))]
    assert split_windows([5], [], (BOS,), 3) == []


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(50, 200))
def test_batches_hold_the_budget_and_every_index_once(lengths, budget):
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    made = list(batches(order, lengths, budget))
    assert [i for batch in made for i in batch] == order
    assert all(max(lengths[i] for i in batch) * len(batch) <= budget for batch in made)


@pytest.mark.parametrize("budget", [20, 64, 4096])
def test_scores_equal_one_forward_per_sequence(model, budget):
    windows = random_windows(13, longest=10)
    with inference(model):
        scores = dict(score_windows(model, windows, budget))
        for i, window in enumerate(windows):
            log_likelihood, greedy = plain_score(model, window.context, window.targets)
            assert scores[i].log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
            assert scores[i].greedy == greedy


def test_greedy_is_seen(model):
    """A continuation made of the likeliest tokens, and the same with its last token changed."""
    prompt = (BOS, 50, 60)
    likeliest = tuple(model.generate(torch.tensor([prompt]), 4, temperature=0.0)[0, 3:].tolist())
    other = (*likeliest[:-1], (likeliest[-1] + 1) % 340)
    with inference(model):
        scores = dict(score_windows(model, [Window(prompt, likeliest), Window(prompt, other)], 100))
    assert scores[0].greedy and not scores[1].greedy


@settings(max_examples=15, deadline=None)
@given(n_answers=st.integers(2, 5), seed=st.integers(0, 99))
def test_a_shared_context_is_computed_once(attention_model, n_answers, seed):
    model = attention_model
    context = random_windows(1, seed)[0].context + tuple(range(100, 130))
    answers = [Window(context, window.targets) for window in random_windows(n_answers, seed + 1, longest=4)]
    seen = []
    hook = model.embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    try:
        with inference(model):
            scores = dict(score_windows(model, answers, 4096))
    finally:
        hook.remove()
    tails = {answer.targets[:-1] for answer in answers}
    apart = [tail for tail in tails if not any(other != tail and other[: len(tail)] == tail for other in tails)]
    assert sum(seen) == len(context) + sum(map(len, apart))  # an answer that another one begins with costs nothing
    for i, answer in enumerate(answers):
        assert scores[i].log_likelihood == pytest.approx(plain_score(model, *answer)[0], abs=1e-4)


def test_forked_states_equal_recomputing_in_a_hybrid(model):
    contexts = [window.context + tuple(range(200, 240)) for window in random_windows(3)]
    windows = [Window(context, other.targets) for context in contexts for other in random_windows(4, 5, longest=6)]
    with inference(model):
        scores = dict(score_windows(model, windows, 4096))
        for i, window in enumerate(windows):
            assert scores[i].log_likelihood == pytest.approx(plain_score(model, *window)[0], abs=1e-4)


def test_logits_exist_for_a_slice_at_a_time(attention_model, monkeypatch):
    monkeypatch.setattr("hybridlm.eval.forward.scoring.SLICE", 340 * 7)
    rows = []
    hook = attention_model.lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    windows = random_windows(9)
    try:
        with inference(attention_model):
            scores = dict(score_windows(attention_model, windows, 4096))
    finally:
        hook.remove()
    assert max(rows) <= 7 and sum(rows) == sum(len(window.targets) for window in windows)
    for i, window in enumerate(windows):
        assert scores[i].log_likelihood == pytest.approx(plain_score(attention_model, *window)[0], abs=1e-4)


def test_log_softmax_is_float32_for_a_bfloat16_model(attention_model):
    """Sums of bfloat16 logarithms would be off by far more than the logits' own rounding."""
    import copy

    model = copy.deepcopy(attention_model).bfloat16()
    window = Window((BOS, 5), tuple(range(20, 60)))
    with inference(model):
        score = dict(score_windows(model, [window], 100))[0]
        logits = model(torch.tensor([window.inputs])).logits[0].double()
    expected = logits.log_softmax(-1)[1:][range(40), window.targets].sum()
    assert score.log_likelihood == pytest.approx(float(expected), abs=1e-3)


def test_softcap_is_applied(attention_model):
    model = attention_model
    window = random_windows(1)[0]
    with inference(model):
        free = dict(score_windows(model, [window], 100))[0]
        model.config.logit_softcap = 0.5
        try:
            capped = dict(score_windows(model, [window], 100))[0]
            assert capped.log_likelihood == pytest.approx(plain_score(model, *window)[0], abs=1e-4)
        finally:
            model.config.logit_softcap = None
    assert abs(free.log_likelihood - capped.log_likelihood) > 0.1


def test_nan_is_an_error_not_a_score(attention_model):
    import copy

    broken = copy.deepcopy(attention_model)
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with inference(broken), pytest.raises(FloatingPointError, match="the model gives NaN"):
        dict(score_windows(broken, random_windows(2), 100))


def test_every_module_keeps_its_mode(attention_model):
    model = attention_model
    model.train()
    model.norm.eval()
    try:
        with pytest.raises(KeyError), inference(model):
            assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
            raise KeyError
        assert model.training and model.blocks.training and not model.norm.training and torch.is_grad_enabled()
    finally:
        model.eval()
