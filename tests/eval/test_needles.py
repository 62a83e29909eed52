"""Prompts with needles: exact lengths, whole needles where they belong, the same from dataclasses import replace
from the same seed."""

import re
import string
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from hybridlm.eval.needles import TASKS
from hybridlm.eval.needles.haystack import Haystack, split_sentences
from hybridlm.eval.needles.prompts import even_depths, make_prompts
from hybridlm.eval.needles.words import KEYS
from hybridlm.eval.texts import read_text
from hybridlm.lm.data.tokenizer import Tokenizer, train_tokenizer
from hybridlm.lm.parts.errors import ConfigError, DataError
from hybridlm.lm.recipe.eval import NeedleName

from .conftest import PROSE
from .needle_oracle import HAY, HIDING, TOKENIZER, answers_of

SEVERAL = ("multivalue", "multiquery", "vt")


def prompts(tokenizer, task, length, depths=(0.0, 0.5, 1.0), samples=2, seed=0, **how):
    made = make_prompts(
        tokenizer, [task], [length], depths=depths, samples=samples, haystack=how.pop("haystack", HAY), seed=seed, **how
    )
    return next(iter(made))


def byte_level(folder, vocab_size) -> Tokenizer:
    """A tokenizer of the GPT-2 kind."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*PROSE, HAY], trainer)
    made.save(str(folder / f"{vocab_size}.json"))
    return Tokenizer.load(folder / f"{vocab_size}.json")


def metaspace(folder) -> Tokenizer:
    """A tokenizer of the Llama kind, which puts a space in front of every text."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=list(string.printable),
        show_progress=False,
        max_token_length=8,
    )
    made.train_from_iterator([*PROSE, HAY], trainer)
    made.save(str(folder / "metaspace.json"))
    return Tokenizer.load(folder / "metaspace.json")


@pytest.fixture(scope="module", params=["bpe340", "bpe420", "bytes", "byte_level", "metaspace"])
def any_tokenizer(request, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizers")
    if request.param == "byte_level":
        return byte_level(folder, 700)
    if request.param == "bytes":
        return byte_level(folder, 258)
    if request.param == "metaspace":
        return metaspace(folder)
    return train_tokenizer([*PROSE, HAY], int(request.param.removeprefix("bpe")))


def test_the_recipe_knows_every_task_and_no_other():
    assert set(NeedleName.__args__) == set(TASKS)
    assert len(set(KEYS)) == len(KEYS) > 30_000


@pytest.mark.parametrize("task", ["single_2", "fwe"])
def test_a_model_that_is_asked_without_bos_has_none_and_keeps_its_prompts_apart(task, tmp_path):
    bare = Tokenizer(TOKENIZER._backend, replace(TOKENIZER.specials, front=()))
    asked, without = (prompts(one, task, 1500, samples=1, cache=tmp_path) for one in (TOKENIZER, bare))
    for one, other in zip(asked, without, strict=True):
        assert one.tokens[0] == TOKENIZER.bos_id and TOKENIZER.bos_id not in other.tokens
        assert other.tokens[0] == one.tokens[1]
        if task == "single_2":
            assert len(other.tokens) == len(one.tokens) == 1500 - one.max_new_tokens
    assert len(list((tmp_path / "needles").iterdir())) == 2


@pytest.mark.parametrize("task", HIDING)
def test_lengths_are_exact_and_needles_whole_for_every_tokenizer(task, any_tokenizer):
    for length in (1500, 1501, 1737):
        for prompt in prompts(any_tokenizer, task, length, samples=1):
            assert len(prompt.tokens) + prompt.max_new_tokens == length == prompt.length
            assert prompt.max_new_tokens >= max(TASKS[task].max_new_tokens, len(prompt.answer))
            assert prompt.tokens[0] == any_tokenizer.bos_id and any_tokenizer.bos_id not in prompt.tokens[1:]
            text = any_tokenizer.decode(prompt.tokens.tolist())
            assert answers_of(text) == set(prompt.answers)
            written = any_tokenizer.decode([*prompt.tokens.tolist(), *prompt.answer]).lower()
            assert written.endswith(" " + ", ".join(prompt.answers))


@settings(max_examples=25, deadline=None)
@given(length=st.integers(900, 3000), depth=st.floats(0, 1), seed=st.integers(0, 2**31), task=st.sampled_from(HIDING))
def test_any_length_depth_and_seed(length, depth, seed, task):
    tokenizer = TOKENIZER
    (prompt,) = prompts(tokenizer, task, length, depths=(depth,), samples=1, seed=seed)
    assert len(prompt.tokens) == length - prompt.max_new_tokens
    assert answers_of(tokenizer.decode(prompt.tokens.tolist())) == set(prompt.answers)


@pytest.mark.parametrize("task", ["single_1", "single_2", "multikey_1", "multikey_2"])
def test_the_asked_needle_lies_at_its_depth(task):
    depths = even_depths(11)
    for prompt in prompts(TOKENIZER, task, 4000, depths=depths, samples=1):
        text = TOKENIZER.decode(prompt.tokens.tolist())
        body = text[text.index("asked for.\n") + 11 : text.rindex("\nWhat")]
        at = body.index(f"is: {prompt.answers[0]}.") - 50
        assert prompt.depth is not None
        assert abs(at / len(body) - prompt.depth) < 0.05
        if prompt.depth in (0.0, 1.0) and task.startswith("single"):
            begins = body.strip().startswith("One of the special")
            assert begins if prompt.depth == 0 else body.strip().endswith(f"is: {prompt.answers[0]}.")


def test_tasks_of_several_needles_have_no_depth_and_spread_theirs():
    for task in SEVERAL:
        made = prompts(TOKENIZER, task, 3000, depths=even_depths(20), samples=2)
        assert len(made) == 40 and all(prompt.depth is None for prompt in made)
        if task == "vt":
            continue
        places = []
        for prompt in made:
            text = TOKENIZER.decode(prompt.tokens.tolist())
            places += [text.index(f"is: {answer}.") / len(text) for answer in prompt.answers]
        counts, _ = np.histogram(places, 4, (0, 1))
        assert len(places) == 160 and counts.min() > 20, counts  # 40 expected in each quarter, sd 5.5


def test_a_chain_of_variables_is_told_in_order():
    for prompt in prompts(TOKENIZER, "vt", 900, samples=5):
        text = TOKENIZER.decode(prompt.tokens.tolist()).lower()
        places = [text.index(f"var {name} =") for name in prompt.answers]
        assert places == sorted(places) and len(places) == 5


def test_a_shorter_chain_goes_before_with_its_answer():
    for prompt in prompts(TOKENIZER, "vt", 900, samples=5):
        text = TOKENIZER.decode(prompt.tokens.tolist())
        example, asked = text.split("\n\n")
        question, names = example.split("they are: ")
        assert answers_of(question) == set(names.lower().split(", ")) and len(names) == 5 * 3 + 4 * 2
        assert asked.endswith("they are:") and not any(f"VAR {name} " in asked for name in names.split(", "))


def test_each_seed_task_and_length_has_its_own_prompts_whatever_is_made_beside_them(tmp_path):
    def tokens(tasks, lengths, seed=0, **how):
        made = make_prompts(TOKENIZER, tasks, lengths, depths=3, samples=2, haystack=HAY, seed=seed, **how)
        return {(p.task, p.length, i): p.tokens.tobytes() for group in made for i, p in enumerate(group)}

    alone = tokens(["single_2"], [900])
    many = tokens(["multikey_2", "single_2"], [1000, 900])
    assert alone.items() <= many.items()
    assert len(set(many.values())) == len(many)
    assert not set(alone.values()) & set(tokens(["single_2"], [900], seed=1).values())
    first = tokens(["multikey_2", "single_2"], [1000, 900], cache=tmp_path)
    assert len(list((tmp_path / "needles").iterdir())) == 4
    assert first == many == tokens(["multikey_2", "single_2"], [1000, 900], cache=tmp_path)


def test_prompts_read_from_the_cache_are_those_that_were_made(tmp_path, monkeypatch):
    how: dict[str, Any] = {"cache": tmp_path, "haystack": HAY}
    made = prompts(TOKENIZER, "multiquery", 900, **how)
    monkeypatch.setattr(Tokenizer, "encode_inside", None)  # nothing is encoded again
    for a, b in zip(made, prompts(TOKENIZER, "multiquery", 900, **how), strict=True):
        assert {**vars(a), "tokens": a.tokens.tolist()} == {**vars(b), "tokens": b.tokens.tolist()}


def test_a_prompt_costs_one_call_of_the_tokenizer(monkeypatch):
    calls, encode = [], Tokenizer.encode_inside
    monkeypatch.setattr(Tokenizer, "encode_inside", lambda self, texts: calls.append(len(texts)) or encode(self, texts))
    n = len(prompts(TOKENIZER, "single_2", 5000, samples=10))
    assert len(calls) == n + 1  # the haystack, once
    assert calls[1:] == [3] * n


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 60), st.data())
def test_cuts_of_a_haystack(sizes, n, data):
    sentences = [list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(sizes))]
    hay = Haystack(sentences)
    stop = data.draw(st.sampled_from(hay.ends.tolist()))
    straw = hay.cut(n, stop)
    everything = list(range(sum(sizes))) * 61
    end = 60 * sum(sizes) + stop
    assert straw.tokens.tolist() == everything[end - n : end]
    ends = {i for i in range(1, n) if straw.tokens[i - 1] in {sentence[-1] for sentence in sentences}}
    assert straw.places.tolist() == sorted({0, n} | ends)


@given(st.text("ab.!? \n”", max_size=40))
def test_sentences_joined_are_the_text(text):
    assert "".join(split_sentences(text)) == text
    assert split_sentences("Is it? “It is.” So.") == ["Is it? ", "“It is.” ", "So."]


def test_impossible_arguments_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"needle task 'single_4': unknown; did you mean 'single_"):
        prompts(TOKENIZER, "single_4", 900)
    with pytest.raises(ConfigError, match=r"lengths: 200 tokens do not hold a prompt of single_2 .* use \d+ or more"):
        prompts(TOKENIZER, "single_2", 200)
    with pytest.raises(ConfigError, match="give fractions from 0"):
        prompts(TOKENIZER, "single_2", 900, depths=[1.5])
    with pytest.raises(ConfigError, match="depths: 0 leaves none"):
        even_depths(0)
    with pytest.raises(DataError, match="the text is empty"):
        prompts(TOKENIZER, "single_2", 900, haystack=" \n")
    with pytest.raises(ConfigError, match="no such file and no source of that name; did you mean 'mobydick'"):
        read_text("mobydik", tmp_path)
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_text(str(tmp_path / "latin"), tmp_path)


def test_the_length_that_an_error_suggests_works():
    with pytest.raises(ConfigError) as error:
        prompts(TOKENIZER, "multiquery", 200)
    suggested = int(re.search(r"use (\d+) or more", str(error.value))[1])  # type: ignore[index]
    assert prompts(TOKENIZER, "multiquery", suggested)


def test_a_source_that_cannot_be_fetched_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no package client
    with pytest.raises(DataError, match=r"text 'mobydick': .*hybridlm fetch mobydick"):
        read_text("mobydick", tmp_path)


def test_a_tokenizer_that_changes_text_is_refused():
    class Lowering(Tokenizer):
        def __init__(self, inner):
            self.__dict__.update(inner.__dict__)

        def decode(self, ids):
            return super().decode(ids).lower()

    with pytest.raises(DataError, match="does not give back 'One of the special magic"):
        prompts(Lowering(TOKENIZER), "single_1", 900)


@given(st.text(" \nabThe.“”é", min_size=1, max_size=20), st.text(" \nab7.”", min_size=1, max_size=20))
def test_joined_pieces_decode_to_the_joined_text(first, second):
    pieces = TOKENIZER.encode_inside([first, second])
    assert TOKENIZER.decode([id for piece in pieces for id in piece]) == first + second
