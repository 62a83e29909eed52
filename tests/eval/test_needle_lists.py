"""Lists of words: counts against closed forms, prompts that end where another word would not fit."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.eval.needles import TASKS, Questions, measure_needles
from hybridlm.eval.needles.lists import CommonWords, FrequentWords
from hybridlm.eval.needles.prompts import make_prompts
from hybridlm.eval.needles.words import KEYS, WORDS
from hybridlm.lm.parts.errors import ConfigError

from .needle_oracle import HAY, LISTS, TOKENIZER, Stub, answers_of, most_frequent, oracle, the_list


def prompts(task, length, samples=3, seed=0, **how):
    made = make_prompts(TOKENIZER, [task], [length], depths=1, samples=samples, haystack=HAY, seed=seed, **how)
    return next(iter(made))


def listed(prompt) -> list[str]:
    """The words of the list that is asked about, in their order."""
    text = TOKENIZER.decode(prompt.tokens.tolist())
    if prompt.task == "fwe":
        return the_list(text, "dots are no word.", "\nWhich three ").split()
    entries = re.findall(r"(\d+)\. (\S+)", the_list(text, "which they are.\n", "\nWhich 10 "))
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    return [word for _, word in entries]


@pytest.mark.parametrize(("length", "common", "other"), [(3000, 6, 1), (6000, 30, 3)])
def test_common_words_come_as_often_as_in_ruler(length, common, other):
    for prompt in prompts("cwe", length):
        counts = Counter(listed(prompt))
        assert {word for word, n in counts.items() if n == common} == set(prompt.answers) and len(prompt.answers) == 10
        assert len(counts) > 20 and set(counts.values()) == {common, other}


@pytest.mark.parametrize(("length", "words", "common", "other"), [(2048, 20, 3, 1), (6000, 40, 10, 3)])
def test_a_solved_list_goes_before_and_its_answer_is_right(length, words, common, other):
    for prompt in prompts("cwe", length):
        text = TOKENIZER.decode(prompt.tokens.tolist())
        question, said = re.findall(r"(\nWhich 10 [^\n]*:)([^\n:]*)", text)[0]
        example = re.findall(r"\d+\. (\S+)", text[: text.index(question)])
        assert len(set(example)) == words and set(Counter(example).values()) == {common, other}
        assert set(re.findall(r"\d+\. (\S+)", said)) == most_frequent(example, 10)


@pytest.mark.parametrize("length", [700, 2048, 5000])
def test_frequent_words_follow_zipf_with_exponent_two(length):
    for prompt in prompts("fwe", length):
        counts = Counter(listed(prompt))
        ranked = [n for _, n in counts.most_common()]
        assert counts.most_common(1)[0][0] == "..." and prompt.answers == tuple(w for w, _ in counts.most_common(4)[1:])
        dots = ranked[0] * math.pi**2 / 6
        n = next(n for n in range(int(dots), int(dots) + 4) if int(n / (math.pi**2 / 6)) == ranked[0])
        vocabulary = (length - 50) // 50
        # of all n that give as many dots, one gives every other rank too
        assert any(
            ranked == [c for k in range(1, vocabulary + 1) if (c := int(m * 6 / (math.pi * k) ** 2))]
            for m in range(n, n + 3)
        )
        assert all(re.fullmatch("[a-z]{6}", word) for word in set(counts) - {"..."})


@settings(max_examples=20, deadline=None)
@given(
    task=st.sampled_from(LISTS), length=st.integers(1800, 4095) | st.integers(5800, 9000), seed=st.integers(0, 2**31)
)
def test_lists_fill_the_length_but_for_less_than_one_more_word(task, length, seed):
    (prompt,) = prompts(task, length, samples=1, seed=seed)
    words = listed(prompt)
    left = length - len(prompt.tokens) - prompt.max_new_tokens
    longest = max(len(TOKENIZER.encode(f" {len(words)}. {word}")) for word in words)
    # one more of the other words is three entries in long lists; by Zipf, two ranks may grow at once
    assert 0 <= left < (3 if task == "cwe" and length >= 4096 else 2) * (longest + 4)
    assert prompt.depth is None and prompt.max_new_tokens >= TASKS[task].max_new_tokens
    assert prompt.tokens[0] == TOKENIZER.bos_id and answers_of(TOKENIZER.decode(prompt.tokens.tolist())) == set(
        prompt.answers
    )
    assert answers_of_tokens(prompt) == list(prompt.answers)


def answers_of_tokens(prompt) -> list[str]:
    said = TOKENIZER.decode([*prompt.tokens.tolist(), *prompt.answer])
    return re.sub(r"\d+\.|,", " ", said[said.rindex("above are:") + 10 :]).split()


@given(n=st.integers(1, 10**6), n_words=st.integers(5, 200))
def test_counts_are_the_closed_forms(n, n_words):
    zipf = FrequentWords().counts(n, 4096, n_words)
    assert zipf.tolist() == [math.floor(n / (k * k * sum_of_inverse_squares())) for k in range(1, n_words + 1)]
    others = min(n, n_words)
    for length, common, other in ((4095, 6, 1), (4096, 30, 3)):
        counts = CommonWords().counts(others, length, n_words + 10)
        assert counts.sum() == 10 * common + others * other
        assert counts[:10].tolist() == [common] * 10 and np.count_nonzero(counts == other) == others


def sum_of_inverse_squares() -> float:
    """zeta(2) by Euler and Maclaurin, to 1e-16."""
    n = 1000
    return sum(1 / k**2 for k in range(1, n)) + 1 / n + 1 / (2 * n**2) + 1 / (6 * n**3) - 1 / (30 * n**5)


def test_words_are_distinct_and_none_is_part_of_another():
    assert len(set(WORDS)) == len(WORDS) > 1000
    text = " ".join(WORDS)
    assert all(text.count(word) == 1 for word in WORDS)


def test_where_single_words_would_run_out_all_are_pairs():
    (prompt,) = prompts("cwe", 12_000, samples=1)
    words = set(listed(prompt))
    assert words <= set(KEYS) and set(prompt.answers) <= words


@pytest.mark.parametrize("task", LISTS)
def test_an_oracle_finds_the_frequent_words_and_noise_does_not(task):
    questions = Questions([task], [2000], HAY, depths=2, beyond="run")
    best = measure_needles(Stub(TOKENIZER, oracle(TOKENIZER)), TOKENIZER, questions)  # type: ignore[arg-type]
    (total,), (cell,) = best.summary, best.cells
    assert total.score == 1 and total.n == cell.n == 2 and cell.depth is None
    if task == "fwe":  # there is one order to say it in
        assert total.answer_exact == 1 and total.answer_nats < 1e-6
    noise = measure_needles(Stub(TOKENIZER, lambda seen: 3 + len(seen) * 7 % 330), TOKENIZER, questions)  # type: ignore
    assert noise.summary[0].score == 0 and noise.summary[0].answer_exact == 0


@pytest.mark.parametrize("task", LISTS)
def test_prompts_are_those_of_their_seed_and_come_back_from_the_cache(task, tmp_path, monkeypatch):
    made = prompts(task, 2000, cache=tmp_path)
    again = prompts(task, 2000, cache=tmp_path)
    for a, b, c in zip(made, again, prompts(task, 2000), strict=True):
        assert {**vars(a), "tokens": a.tokens.tolist()} == {**vars(b), "tokens": b.tokens.tolist()}
        assert a.tokens.tolist() == c.tokens.tolist()
    others = [*prompts(task, 2000, seed=1), *prompts(task, 2001)]
    assert len({prompt.tokens.tobytes() for prompt in [*made, *others]}) == 9


@pytest.mark.parametrize("task", LISTS)
def test_too_short_a_length_says_which_is_long_enough(task):
    with pytest.raises(ConfigError, match=rf"lengths: 200 tokens do not hold a list of {task} .* use \d+ or more") as e:
        prompts(task, 200)
    assert prompts(task, int(re.search(r"use (\d+) or more", str(e.value))[1]))  # type: ignore[index]
