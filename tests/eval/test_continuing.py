"""Where a continued text ends: stop strings that hold special tokens, several ends of text, odd generation options."""

from copy import copy

import pytest
import tokenizers
import torch
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridlm.eval.benchmarks.continuing import Continuation, Sampling, continue_batch
from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.lm.data.tokenizer import Tokenizer
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tests.eval.test_harness import Script, requests

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A byte-level tokenizer of 256 bytes and three special tokens, and one added token that is not special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.add_tokens(["<tool>"])
    folder = tmp_path_factory.mktemp("chat")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def chat(files) -> Tokenizer:
    return Tokenizer.load(files)


@pytest.fixture(scope="module")
def theirs(files) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(files / "tokenizer.json"), clean_up_tokenization_spaces=False)


def test_the_names_of_special_tokens_are_those_that_decode_leaves_out(chat, tokenizer):
    assert list(chat.special_names.values()) == SPECIAL
    for some in (chat, tokenizer):
        assert all(some.decode([id]) == "" for id in some.special_names)
    assert tokenizer.special_names == {1: "<s>", 2: "</s>"}


TEXTS = {
    "a special token": ("Yes.<|im_end|>\n<|im_start|>user", ["<|im_end|>"], "Yes."),
    "text and a special token": ("a\nb\n<|im_end|>c", ["\n<|im_end|>"], "a\nb"),
    "a special token and text": ("a<|im_start|>b<|im_start|>user", ["<|im_start|>user"], "ab"),
    "the earliest of several": ("one two<|im_end|>", ["<|im_end|>", "two"], "one "),
    "one that is not there": ("a<|im_start|>b", ["<|im_end|>"], "ab"),
    "a part of a name": ("ab<|im_end|>c", ["im_end"], "ab"),
    "at once": ("<|im_end|>a", ["<|im_end|>"], ""),
    "twice": ("<|im_start|><|im_start|>a<|im_end|>", ["<|im_end|>"], "a"),
    "an added token that is text": ("a<tool>b", ["<tool>"], "a"),
    "characters of several bytes": ("é☃<|im_end|>☃", ["☃<|im_end|>"], "é"),
    "a stop of text behind a special token": ("a<|im_start|>user: b", ["user:"], "a"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_stop_strings_fire_where_special_tokens_are_part_of_them(chat, theirs, case):
    text, until, expected = TEXTS[case]
    ids = chat.encode(text)
    row, criteria = Continuation(chat, chat.encode("x"), tuple(until)), stop_sequences_criteria(theirs, until, 1, 1)
    for i, token in enumerate(ids):
        row.push(token)
        assert row.stopped == bool(
            criteria(torch.tensor([[0, *ids[: i + 1]]]), None)[0]
        )  # at the token of lm-eval's hf
        if row.stopped:
            break
    assert row.finish() == expected


def test_a_stop_around_a_special_token_is_one_in_the_text_as_it_is_given_back(chat):
    ids = chat.encode("ab\n<|im_start|>\nc")
    row = Continuation(chat, chat.encode("x"), ("\n\n",))
    for token in ids:
        row.push(token)
    assert row.finish() == postprocess_generated_text(chat.decode(ids), ["\n\n"], None) == "ab"


def test_special_tokens_are_left_out_of_a_text_that_none_of_them_ends(chat):
    for ids in (chat.encode("a<|im_start|>é☃b"), [*chat.encode("☃")[:2], 257, *chat.encode("☃")[2:]]):
        row = Continuation(chat, chat.encode("x"), ("stop",))
        for token in ids:
            row.push(token)
        assert row.finish() == chat.decode(ids)


def test_every_end_of_text_ends_a_text(chat):
    ends = copy(chat)
    ends.stop_ids = (256, 258)
    script = Script([*chat.encode("ab"), 258, *chat.encode("cd")], eos_id=256)
    for tokenizer, expected in ((ends, "ab"), (chat, "abcd")):
        script.drawn = 0
        found = continue_batch(script, tokenizer, [[256, 97]], Sampling((), 9, 0.0, 1.0), 0)
        assert found == [expected]


def test_padding_ids_are_never_drawn(chat):
    script = Script([300, 330, 339], eos_id=256)  # of 340 rows, 260 have a token
    assert continue_batch(script, chat, [[256, 97]], Sampling((), 3, 0.0, 1.0), 0) == [chat.decode([0, 0, 0])]


def test_a_prompt_of_special_tokens_only_and_stops_that_are_empty(chat):
    script = Script(chat.encode("hello"), eos_id=256)
    scorer = HybridHarness(script, chat, max_length=32)
    for context in ("<|im_start|>", "<|im_start|><|im_end|>", "<|endoftext|>", ""):
        for until in ([], [""], "", None, ["", "l"]):
            script.drawn = 0
            asked = requests("generate_until", [(context, {"until": until, "max_gen_toks": 8})])
            assert scorer.generate_until(asked) == ["he" if until == ["", "l"] else "hello"]
    script.drawn = 0
    assert scorer.generate_until(requests("generate_until", [("x", {"max_gen_toks": 0})])) == [""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gen_toks": -1}, "max_new_tokens: -1 is negative; use 0 or more"),
        ({"max_gen_toks": "many"}, "invalid literal .*; max_gen_toks, temperature and top_p are numbers"),
        ({"do_sample": True, "temperature": -1}, "temperature: -1.0 is negative; .*"),
        ({"do_sample": True, "temperature": "hot"}, "could not convert .*; max_gen_toks, .*"),
        ({"do_sample": True, "temperature": 1, "top_p": 0}, r"top_p: 0.0 is outside \(0, 1\]; .*"),
        ({"do_sample": True, "temperature": 1, "top_p": None}, "float.*; max_gen_toks, .*"),
        ({"until": [3]}, "until: 3 is no text; use text, or a list of texts"),
        ({"until": {"a": 1}}, "until: .* is no text; .*"),
        ({"stop": ["a"]}, "'stop' is not supported; .*"),
    ],
)
def test_odd_generation_options_are_one_clear_error(options, message):
    with pytest.raises(ConfigError, match=f"^generation_kwargs: {message}$") as error:
        Sampling.from_options(options)
    assert "\n" not in str(error.value)


def test_more_tokens_than_there_is_room_for_is_one_clear_error(chat):
    message = r"^task 't', document 0: max_gen_toks=99 leaves no room for a context within max_length=32; raise it to "
    with pytest.raises(ConfigError, match=message):
        HybridHarness(Script([]), chat, max_length=32).generate_until(
            requests("generate_until", [("x", {"max_gen_toks": 99})])
        )
