"""Exported tokenizers give AutoTokenizer the same ids, and texts, as ours."""

import argparse
import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from hybridlm.lm.data.tokenizer import Tokenizer, train_tokenizer
from hybridlm.lm.hf.tokenizer_files import write_tokenizer
from hybridlm.lm.parts.errors import ConfigError

TEXTS = [
    "Fellow citizens: the state of the union is strong, and the strength of the state is in its citizens.",
    "def f(self, x):\n    return self.g(x)\n\n\n        # twelve spaces            and 1234567 digits\t\ttabs",
    "naïve café, über — “quotes” … 日本語のテスト ▁ ======== abababababab aaaaaaaaaaaaaaa",
] * 30
TEXTS.append(Path(argparse.__file__).read_text())  # enough words for a vocabulary
PIECES = ["  ", "    ", "\n", "\t", "▁", "é", "日本", "😀", "<s>", "</s>", "<unk>", "<0x41>", "the", "self", "12", "a"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Ours, and what AutoTokenizer makes of its export."""
    own, folder = train_tokenizer(TEXTS, 600), tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(own, folder, 512)
    return own, AutoTokenizer.from_pretrained(folder)


def check(own: Tokenizer, theirs, text: str) -> None:
    ids = own.encode(text)
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.encode(text) == [own.bos_id, *ids]
    assert theirs.decode(ids, skip_special_tokens=True) == own.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=40).map("".join))
def test_same_ids_for_any_text(pair, text):
    check(*pair, text)


@settings(max_examples=200, deadline=None)
@given(unit=st.lists(st.sampled_from([*PIECES, *"ab =.1"]), min_size=1, max_size=3).map("".join), n=st.integers(1, 40))
def test_same_ids_for_repeated_text(pair, unit, n):
    """Runs of one pattern: overlapping pairs of equal rank are where two orders of merging would show."""
    check(*pair, unit * n)


def test_same_ids_for_the_training_text(pair):
    for text in TEXTS[:3]:
        check(*pair, text * 3)
        check(*pair, f"  {text}   \n ")


def test_special_tokens(pair):
    own, theirs = pair
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (own.bos_id, own.eos_id, own.vocab_size)
    assert theirs.decode([own.bos_id, *own.encode("a b"), own.eos_id], skip_special_tokens=True) == "a b"
    batch = theirs(["a", "a b c d"], padding=False)["input_ids"]
    assert batch == [[own.bos_id, *own.encode(text)] for text in ("a", "a b c d")]


def trained(**options) -> Tokenizer:
    """A SentencePiece model as others train them."""
    from hybridlm.lm.data.tokenizer import SentencePiece

    model = io.BytesIO()
    lines = (line for text in TEXTS for line in text.split("\n"))
    settings = {"model_type": "bpe", "vocab_size": 500, "byte_fallback": True, "normalization_rule_name": "identity"}
    settings |= {"remove_extra_whitespaces": False, "minloglevel": 2, "num_threads": 1, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **settings)
    return Tokenizer(SentencePiece(model.getvalue(), "m"))


def test_a_space_in_front(tmp_path):
    """SentencePiece's default of a space before the text, as Llama 2 has it."""
    own = trained()
    write_tokenizer(own, tmp_path, 512)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a", " a", "  a  b", "the state\n of 12", "日本 naïve", "A▁B", "▁"):
        check(own, theirs, text)


def test_what_has_no_equal_is_named(tmp_path):
    own = trained(model_type="unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    with pytest.raises(ConfigError, match="need model type BPE, no normalisation, remove_extra_whitespaces off"):
        write_tokenizer(own, tmp_path, 512)


def test_fast_tokenizers_keep_their_settings(tmp_path):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    bpe.save(str(source / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}", "model_max_length": 99}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    write_tokenizer(source, out, 512)
    theirs, own = AutoTokenizer.from_pretrained(out), Tokenizer.load(source)
    assert (theirs.chat_template, theirs.model_max_length, theirs.eos_token_id) == ("{{ messages }}", 99, own.eos_id)
    for text in (*TEXTS[:3], "  two  spaces "):
        assert theirs.encode(text, add_special_tokens=False) == own.encode(text)
