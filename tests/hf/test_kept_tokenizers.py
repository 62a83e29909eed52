"""An imported tokenizer encodes as AutoTokenizer does, and knows where a document begins and ends."""

import json

import pytest
from transformers import AutoTokenizer

from hybridlm.lm.data.tokenizer import train_tokenizer
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.tests.hf.llamas import VOCAB, edit_config, save, save_tokenizer

TEXTS = ["the cat sat", " on  the\n\nmat, 0123", "that</s> was", "", "<s>", "the"]


@pytest.fixture
def src(tmp_path):
    save(tmp_path / "src")
    return tmp_path / "src"


def test_every_text_is_encoded_as_autotokenizer_does(src, tmp_path):
    theirs = AutoTokenizer.from_pretrained(src)
    mine = import_checkpoint(src, tmp_path / "dst").tokenizer()
    for text in TEXTS:
        assert mine.encode(text) == theirs(text, add_special_tokens=False).input_ids
        ids = mine.encode(text)
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_call_that_was_saved_with_the_tokenizer_cuts_nothing(src, tmp_path):
    tokenizer = save_tokenizer(src)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(src / "tokenizer.json"))
    mine = import_checkpoint(src, tmp_path / "dst").tokenizer()
    theirs = AutoTokenizer.from_pretrained(src)
    for text in TEXTS:
        assert mine.encode(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("settings", "config", "generation", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token_id": 5}, None, (0, 1)),  # names come first
        ({"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>"}, {}, None, (0, 1)),
        ({"bos_token": None, "eos_token": "</s>"}, {}, None, (1, 1)),  # without a BOS, as Qwen: documents follow an EOS
        ({"bos_token": None, "eos_token": "</s>"}, {"bos_token_id": 0}, None, (0, 1)),
        ({"bos_token": None, "eos_token": None}, {"bos_token_id": 0, "eos_token_id": 1}, None, (0, 1)),
        ({"bos_token": None, "eos_token": None}, {"eos_token_id": 7}, {"eos_token_id": [1, 7]}, (1, 1)),
    ],
)
def test_bos_and_eos_are_those_of_the_checkpoint(src, tmp_path, settings, config, generation, expected):
    save_tokenizer(src, **settings)
    edit_config(src, **config)
    (src / "generation_config.json").unlink()
    if generation:
        (src / "generation_config.json").write_text(json.dumps(generation))
    mine = import_checkpoint(src, tmp_path / "dst").tokenizer()
    assert (mine.bos_id, mine.eos_id) == expected


def test_chat_templates_are_kept(src, tmp_path):
    (src / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    run = import_checkpoint(src, tmp_path / "dst")
    kept = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    assert kept.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_a_sentencepiece_model_alone(src, tmp_path):
    texts = ["the cat sat on the mat and that was that, 0123456789\n" * 9]
    train_tokenizer(texts, 300).save(src)
    (src / "tokenizer.json").unlink()
    save(tmp_path / "wide", vocab_size=300)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "wide" / name).replace(src / name)
    theirs = AutoTokenizer.from_pretrained(src)
    mine = import_checkpoint(src, tmp_path / "dst").tokenizer()
    for text in ("the cat", " the  cat\n", "<s>é▁"):
        assert mine.encode_prompt(text) == theirs(text).input_ids
    assert VOCAB < mine.vocab_size == 300
