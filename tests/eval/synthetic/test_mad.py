"""MAD's tasks read again from their definition, and each defect of the published generators beside its cure."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.synthetic import TASKS
from hybridlm.eval.synthetic.mad import Compression, LastVectorDecoder, Memorization, SelectiveCopy, sinusoids
from hybridlm.eval.synthetic.mad_recall import FuzzyRecall, MadRecall, NoisyRecall
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.eval.synthetic.checks import check_chance, check_fresh_process, check_solved

ALL = (MadRecall, NoisyRecall, FuzzyRecall, SelectiveCopy, Memorization, Compression)
IGNORE = -100


def rows(task, n=40, seed=0):
    """Inputs and labels as lists, one pair per example."""
    examples = task.sample(n, seed)
    return zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True)


# recall


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(2, 40), st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 99))
def test_a_key_asks_from_its_second_time_on(content, pairs, noise, seed):
    task = MadRecall(vocab_size=content + 5, length=2 * pairs, noise_vocab=5, noise=noise)
    for tokens, labels in rows(task, 10, seed):
        known: dict[int, int] = {}
        for place in range(0, len(tokens), 2):
            key, value = tokens[place : place + 2]
            assert labels[place + 1] == IGNORE
            if key >= content:
                assert noise and value >= content and labels[place] == IGNORE
                continue
            assert key < content // 2 <= value < content
            assert labels[place] == (value if key in known else IGNORE)
            assert known.setdefault(key, value) == value
        assert labels[-2] != IGNORE  # the last pair repeats a key


def test_share_of_noise():
    inputs = NoisyRecall().sample(500, 0).inputs
    pairs = inputs.unflatten(1, (64, 2))
    noisy = pairs >= 16
    assert torch.equal(noisy[..., 0], noisy[..., 1])
    expected = 0.2 * 62 / 64  # of 64 pairs, the last and one of the others are never noise
    assert noisy.float().mean().item() == pytest.approx(expected, abs=5 * (0.16 / 32000) ** 0.5)


@pytest.mark.parametrize("task", [MadRecall, NoisyRecall, FuzzyRecall])
def test_recall_trains_on_answers_and_as_published_on_every_next_token(task):
    ours, theirs = task().sample(20, 5), task(mad_compatible=True).sample(20, 5)
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(theirs.labels[:, :-1], ours.inputs[:, 1:]) and bool((theirs.labels[:, -1] == IGNORE).all())
    due = ours.labels != IGNORE
    assert torch.equal(ours.labels[due], theirs.labels[due]) and 0 < due.float().mean() < 0.6


# fuzzy recall


def split_motifs(tokens, n_keys, pad):
    """(key, value, place of the value) in order; keys and values have ids of their own, so that motifs part by kind."""
    start = next(i for i, token in enumerate(tokens) if token != pad)
    starts = [start]
    starts += [i for i in range(start + 1, len(tokens)) if (tokens[i] < n_keys) and (tokens[i - 1] >= n_keys)]
    for a, b in pairwise([*starts, len(tokens)]):
        middle = next(i for i in range(a, b) if tokens[i] >= n_keys)
        yield tuple(tokens[a:middle]), tuple(tokens[middle:b]), middle


@settings(max_examples=25, deadline=None)
@given(st.integers(9, 60), st.integers(12, 120), st.integers(1, 3), st.integers(0, 99))
def test_fuzzy_answers_are_the_value_of_a_repeated_motif(vocab_size, length, min_key, seed):
    task = FuzzyRecall(vocab_size=vocab_size, length=length, min_key=min_key)
    n_keys = (vocab_size - 1) // 2
    for tokens, labels in rows(task, 10, seed):
        known, due = {}, [IGNORE] * length
        for key, value, place in split_motifs(tokens, n_keys, vocab_size - 1):
            assert min_key <= len(key) <= 3 and 1 <= len(value) <= 3
            assert len({*key}) == len(key) and len({*value}) == len(value)
            if key in known:
                due[place - 1 : place - 1 + len(value)] = value
            assert known.setdefault(key, value) == value
        assert labels == due
        last = list(split_motifs(tokens, n_keys, vocab_size - 1))[-1]
        assert labels[last[2] - 1] != IGNORE  # the key asked last has always been shown


def test_fuzzy_motifs_are_uniform():
    tokens = FuzzyRecall(vocab_size=9, min_key=1, length=60).sample(1500, 0).inputs.tolist()
    first = [next(split_motifs(row, 4, 8))[0] for row in tokens]
    sizes = [sum(len(key) == size for key in first) for size in (1, 2, 3)]
    assert max(abs(count - 500) for count in sizes) < 5 * (1500 * 2 / 9) ** 0.5
    pairs = [key for key in first if len(key) == 2]
    assert len(set(pairs)) == 12  # 4 x 3 ordered choices
    assert max(pairs.count(p) for p in set(pairs)) < len(pairs) / 12 + 5 * (len(pairs) / 12) ** 0.5


# selective copying


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 30), st.integers(1, 12), st.integers(0, 40), st.booleans(), st.integers(0, 99))
def test_copy_asks_for_the_content_in_order(vocab_size, copied, extra, compatible, seed):
    task = SelectiveCopy(
        vocab_size=vocab_size, n_copied=copied, length=2 * copied + 2 + extra, mad_compatible=compatible
    )
    for tokens, labels in rows(task, 10, seed):
        marker = tokens.index(vocab_size - 1)
        assert marker == task.length - copied - 1 and set(tokens[marker + 1 :]) == {vocab_size - 2}
        content = [token for token in tokens[:marker] if token < vocab_size - 2]
        assert labels == [IGNORE] * (marker + 1) + content


def test_blanks_also_stand_behind_the_last_content_token():
    slots = 256 - 16 - 1

    def touching(compatible):
        inputs = SelectiveCopy(mad_compatible=compatible).sample(2000, 0).inputs
        return (inputs[:, slots - 1] < 14).float().mean().item()

    assert touching(True) == 1
    assert touching(False) == pytest.approx(16 / slots, abs=5 * (16 / slots / 2000) ** 0.5)


def test_published_blanks_are_dealt_out_one_by_one():
    """Each blank goes before one of 16 tokens: before the first of them stand (239 - 16) / 16 on average."""
    inputs = SelectiveCopy(mad_compatible=True).sample(3000, 0).inputs
    before = (inputs < 14).int().argmax(1).double()
    mean, variance = 223 / 16, 223 * 15 / 256
    assert before.mean().item() == pytest.approx(mean, abs=5 * (variance / 3000) ** 0.5)
    assert before.var().item() == pytest.approx(variance, rel=0.15)


# memorisation


def test_the_map_is_one_to_one_and_the_same_for_every_seed():
    task = Memorization(vocab_size=64, length=20)
    known = {}
    for seed in (0, 1):
        for tokens, labels in rows(task, 60, seed):
            assert tokens[1::2] == [63] * 10 and labels[::2] == [IGNORE] * 10
            for key, value in zip(tokens[::2], labels[1::2], strict=True):
                assert key < 31 <= value < 63 and known.setdefault(key, value) == value
    assert len(known) == len(set(known.values())) == 31
    other = Memorization(vocab_size=64, length=20, map_seed=1).values()
    assert [known[k] for k in range(31)] == task.values().tolist() != other.tolist()


# compression


@pytest.mark.parametrize("compatible", [False, True])
def test_compression_asks_for_no_noise(compatible):
    task = Compression(vocab_size=20, noise_vocab=4, noise=0.3, mad_compatible=compatible)
    noisy = 0
    for tokens, labels in rows(task, 200):
        assert tokens[-1] == 19 and max(tokens[:-1]) < 19
        noisy += sum(15 <= token < 19 for token in tokens)
        assert labels == (tokens if compatible else [t if t < 15 else IGNORE for t in tokens])
    assert noisy / (200 * 31) == pytest.approx(0.3, abs=5 * (0.21 / 6200) ** 0.5)


def test_decoder_sees_the_last_vector_and_the_position_alone():
    torch.manual_seed(0)
    decoder = Compression(vocab_size=16).readout(8)
    assert isinstance(decoder, LastVectorDecoder)
    hidden = torch.randn(3, 6, 8)
    logits = decoder(hidden)
    assert logits.shape == (3, 6, 16)
    torch.testing.assert_close(decoder(torch.cat((torch.randn(3, 5, 8), hidden[:, -1:]), 1)), logits)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3 and (logits[0] - logits[1]).abs().max() > 1e-3


def test_sinusoids_are_distinct_codes_of_known_length():
    codes = sinusoids(256, 10, torch.zeros(1))
    torch.testing.assert_close(codes.square().sum(1), torch.full((256,), 5.0))
    torch.testing.assert_close(codes[:, 0], torch.arange(256.0).sin())
    assert torch.cdist(codes, codes).add(9 * torch.eye(256)).min() > 0.1
    assert sinusoids(4, 7, torch.zeros(1)).shape == (4, 7)


# all six


@pytest.mark.parametrize("task", ALL)
def test_solver(task):
    check_solved(task())
    assert TASKS[task.kind] is task


def test_the_same_bytes_in_a_fresh_process():
    check_fresh_process({task.kind: {} for task in ALL})


@pytest.mark.parametrize(
    "task", [MadRecall(), NoisyRecall(), FuzzyRecall(), SelectiveCopy(), Memorization(), Compression()]
)
def test_chance(task):
    check_chance(task, 1000)


def test_anchors_are_the_published_table():
    average = {}
    for task in ALL:
        for anchor in task().anchors():
            assert 0 < anchor.value <= 1 and anchor.metric == "accuracy"
            average.setdefault(anchor.who, []).append(100 * anchor.value)
    printed = {"Transformer": 74.5, "Mamba": 69.3, "GLA": 60.0, "DeltaNet": 71.8, "RWKV-7": 79.3}
    assert {who: round(sum(values) / 6, 1) for who, values in average.items() if who in printed} == pytest.approx(
        printed, abs=0.06
    )


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        (MadRecall, {"length": 7}, "length: 7 is odd"),
        (MadRecall, {"noise": 0.2}, "noise_vocab: 0, but noise=0.2 needs tokens"),
        (MadRecall, {"vocab_size": 18, "noise_vocab": 16}, "leaves 2; two keys and two values need 4"),
        (MadRecall, {"noise": 1.0, "noise_vocab": 4}, "noise"),
        (FuzzyRecall, {"motif": 9}, "motif: 9 must lie between"),
        (FuzzyRecall, {"min_key": 4}, "motif: 3 must lie between min_key=4"),
        (FuzzyRecall, {"length": 11}, "holds no two pairs of motifs; use 12"),
        (SelectiveCopy, {"length": 32}, "too short for n_copied=16; use at least 34"),
        (Memorization, {"length": 5}, "length: 5 is odd"),
        (Compression, {"noise": 0.2}, "noise_vocab: 0"),
        (Compression, {"noise_vocab": 14}, "use at least 17"),
        (Compression, {"n_copied": 3}, "unknown key 'n_copied'"),
    ],
)
def test_bad_options(task, options, says):
    with pytest.raises(ConfigError, match=says):
        task.parse(options)
