import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.forward import prefix_tree
from hybridlm.eval.forward.prefix_tree import DEPTH, Node, grow, separate
from hybridlm.eval.forward.scoring import NaNScore, Window, inference, score_windows

INPUTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40).map(tuple), min_size=1, max_size=25)


def paths(nodes: list[Node], before: tuple[int, ...] = ()):
    """(node, the tokens up to its end) for every node."""
    for node in nodes:
        assert node.start == len(before) and node.tokens
        whole = before + node.tokens
        yield node, whole
        yield from paths(node.children, whole)


def computed(forest: list[Node]) -> int:
    return sum(len(node.tokens) for node, _ in paths(forest))


@given(inputs=INPUTS)
def test_every_input_lies_on_one_path(inputs):
    forest = grow(inputs)
    covered = [0] * len(inputs)
    for node, whole in paths(forest):
        assert len({child.tokens[0] for child in node.children}) == len(node.children) != 1
        for i in node.members:
            n = min(len(inputs[i]), node.end)
            assert whole[:n] == inputs[i][:n]
            covered[i] += max(0, n - node.start)
    assert covered == [len(tokens) for tokens in inputs]


@given(inputs=INPUTS)
def test_nothing_is_computed_twice_that_is_worth_a_fork(inputs):
    """Never more than without sharing, never less than the different beginnings; a node pays for its copies."""
    forest = grow(inputs)
    beginnings = {tokens[:n] for tokens in inputs for n in range(1, len(tokens) + 1)}
    assert len(beginnings) <= computed(forest) <= computed(separate(inputs))
    for node, _ in paths(forest):
        k = len(node.children)
        assert not k or len(node.tokens) * (k - 1) > prefix_tree.FORK * k


@given(inputs=INPUTS, seed=st.integers(0, 9))
def test_the_forest_does_not_depend_on_the_order(inputs, seed):
    def shape(given):
        return [whole for _, whole in paths(grow(given))]

    assert shape(inputs) == shape(random.Random(seed).sample(inputs, len(inputs)))


def test_depth_is_bounded():
    """A comb: every input leaves the longest one a few tokens later than the one before."""
    comb = [(1,) * (10 * i) + (2,) * 10 for i in range(1, 30)]
    depth = 0
    level = grow(comb)
    while level:
        depth += 1
        level = [child for node in level for child in node.children]
    assert depth == DEPTH
    assert grow([]) == []


def test_few_shot_examples_questions_and_answers_by_hand():
    shots, one, two = tuple(range(100, 130)), tuple(range(200, 212)), tuple(range(300, 312))
    stem = (7,) * 9
    inputs = [shots + one + stem + (1, 2), shots + one + stem + (3,), shots + one + (4, 5), shots + two, shots + two]
    [root] = grow(inputs)
    assert root.tokens == shots and sorted(root.members) == [0, 1, 2, 3, 4]
    first, second = root.children
    assert (first.tokens, second.tokens) == (one, two) and sorted(second.members) == [3, 4]
    assert [child.tokens for child in first.children] == [(4, 5), stem]
    assert [child.tokens for child in first.children[1].children] == [(1, 2), (3,)]
    assert computed([root]) == 30 + 12 + 12 + 2 + 9 + 3


def answers_of_few_shot_questions(seed: int) -> list[Window]:
    """Questions behind the same examples, answers with common first words, some of one token, some equal."""
    rng = random.Random(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(3, 97), k=rng.randint(low, high)))

    shots = (1, *draw(0, 30))
    windows = []
    for _ in range(4):
        context = shots + draw(1, 12)
        stem = draw(0, 12)
        answers = [stem + draw(1, 5) for _ in range(rng.randint(1, 4))] + [draw(1, 1)]
        windows += [Window(context, answer) for answer in [*answers, answers[0]]]
    rng.shuffle(windows)
    return windows


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), batch_tokens=st.sampled_from([60, 150, 8192]))
def test_scores_are_those_without_sharing(small_hybrid, seed, batch_tokens):
    windows = answers_of_few_shot_questions(seed)
    with inference(small_hybrid):
        shared = dict(score_windows(small_hybrid, windows, batch_tokens))
        alone = dict(score_windows(small_hybrid, windows, batch_tokens, share_prefixes=False))
    assert shared.keys() == alone.keys() == set(range(len(windows)))
    for i, score in alone.items():
        assert shared[i].log_likelihood == pytest.approx(score.log_likelihood, rel=1e-5, abs=1e-5)
        assert shared[i].greedy == score.greedy


def test_each_position_has_logits_once(small_hybrid):
    """Two answers that begin alike are scored from one hidden vector, and no position without a target is."""
    context, stem = tuple(range(1, 21)), tuple(range(30, 45))
    windows = [Window(context, (*stem, 60, 61)), Window(context, (*stem, 62)), Window(context, (70, 71))]
    rows = []
    hook = small_hybrid.lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        with inference(small_hybrid):
            dict(score_windows(small_hybrid, windows, 4096))
    finally:
        hook.remove()
    scored = {w.inputs[:n] for w in windows for n in range(len(w.context), len(w.inputs) + 1)}
    assert sum(rows) == len(scored) < sum(len(w.targets) for w in windows)


def test_nan_names_the_window(small_hybrid):
    broken = copy.deepcopy(small_hybrid)
    broken.lm_head.weight = torch.nn.Parameter(small_hybrid.lm_head.weight.detach().clone())  # tied no more
    with torch.no_grad():
        broken.embed.weight[55] = float("nan")
    windows = [Window((1, 2, 3), (4, 5)), Window((1, 2, 55), (4, 5)), Window((1, 9), (4,))]
    with inference(broken), pytest.raises(NaNScore, match="the model gives NaN") as caught:
        dict(score_windows(broken, windows, 100))
    assert caught.value.window == 1
