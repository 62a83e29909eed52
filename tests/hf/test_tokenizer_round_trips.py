"""The same text is the same ids in the source, the import, the export, and its import again, for every kind."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hybridlm.lm.data.tokenizer import SentencePiece, Tokenizer, train_tokenizer
from hybridlm.lm.hf.tokenizer_files import write_tokenizer
from hybridlm.lm.hf.tokenizers import copy_tokenizer
from hybridlm.tests.hf.tokenizer_kinds import ADDED, SOURCES, TEXTS, byte_level, sentencepiece_model

PIECES = [
    " ",
    "  ",
    "\n",
    "\t",
    "▁",
    "é",
    "日本",
    "😀",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "the",
    "cat",
    "[X]",
    "12",
    *ADDED,
]
text = st.lists(st.sampled_from([*PIECES, "<|endoftext|>"]) | st.text(max_size=3), max_size=12).map("".join)
FIXED = [
    "",
    " ",
    "a",
    " the cat ",
    "\n the\n\n",
    "<s> the</s> cat",
    "A▁B",
    "▁",
    "the<|im_start|> cat<|im_end|>",
    "é😀\x00",
]
ANY_TEXT = settings(max_examples=40, deadline=None)


class Way:
    """A tokenizer on its way: transformers' of the source, ours, transformers' of our export, ours of that."""

    def __init__(self, own: Tokenizer, folder: Path, kind: str):
        self.own = own
        write_tokenizer(own, folder / "export", 64)
        ends = {"bos_token_id": own.bos_id, "eos_token_id": own.eos_id}  # as an export's own config.json has them
        (folder / "export" / "config.json").write_text(json.dumps({"model_type": kind, **ends}))
        self.exported = AutoTokenizer.from_pretrained(folder / "export")
        copy_tokenizer(folder / "export", ends, folder / "again")
        self.again = Tokenizer.load(folder / "again")

    def check(self, text: str) -> None:
        expected = self.own.encode_prompt(text)
        assert self.exported(text).input_ids == expected
        assert self.again.encode_prompt(text) == expected
        assert (
            self.exported(text, add_special_tokens=False).input_ids == self.own.encode(text) == self.again.encode(text)
        )
        ids = self.own.encode(text)
        assert self.again.decode(ids) == self.own.decode(ids) == self.exported.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module", params=SOURCES)
def imported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kind")
    SOURCES[request.param](folder / "source")
    config = json.loads((folder / "source" / "config.json").read_text())
    theirs = AutoTokenizer.from_pretrained(folder / "source")
    copy_tokenizer(folder / "source", config, folder / "run")
    return theirs, Way(Tokenizer.load(folder / "run"), folder, config["model_type"])


@ANY_TEXT
@given(text)
def test_an_import_reads_every_text_as_its_source_and_gives_it_back(imported, text):
    theirs, way = imported
    for sample in (text, *FIXED):
        assert way.own.encode_prompt(sample) == theirs(sample).input_ids
        way.check(sample)


def test_an_import_begins_and_ends_with_the_tokens_of_its_source(imported):
    theirs, way = imported
    named = [i for i in (theirs.bos_token_id, theirs.eos_token_id) if i is not None]
    assert way.own.prefix_id == way.again.prefix_id == (named[0] if named else way.own.bos_id)
    assert (way.again.front, way.again.back) == (way.own.front, way.own.back)
    assert (way.again.bos_id, way.again.eos_id) == (way.own.bos_id, way.own.eos_id)


def own_of_json(folder: Path) -> Tokenizer:
    byte_level().save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder / "tokenizer.json").for_training("text")


OWN = {
    "trained": lambda folder: train_tokenizer(TEXTS, 300),
    "a space in front": lambda folder: Tokenizer(SentencePiece(sentencepiece_model(), "m")),
    "a tokenizers file": own_of_json,
}


@pytest.fixture(scope="module", params=OWN)
def own(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return Way(OWN[request.param](folder), folder, "llama")


@ANY_TEXT
@given(text)
def test_a_tokenizer_of_our_own_reads_every_text_alike_when_exported(own, text):
    for sample in (text, *FIXED):
        assert own.own.encode_prompt(sample) == [own.own.bos_id, *own.own.encode(sample)]
        own.check(sample)
