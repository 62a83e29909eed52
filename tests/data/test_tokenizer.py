import json
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.lm.data.fast import FastTokenizer
from hybridlm.lm.data.tokenizer import LONGEST_LINE, SentencePiece, Tokenizer, train_tokenizer
from hybridlm.lm.parts.errors import ConfigError, UserError
from hybridlm.tests.hf.tokenizer_kinds import byte_level, metaspace, sentencepiece_model

from .conftest import make_texts

TRAINED = train_tokenizer(make_texts(200), 320)
text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\r\u2581<>s/0xé😀"), max_size=60)


@settings(max_examples=300, deadline=None)
@given(text)
def test_any_text_survives(sample):
    assert TRAINED.decode(TRAINED.encode(sample)) == sample


@pytest.mark.parametrize(
    "sample",
    ["", " ", "  a  b \n\n\n c ", "\u2581", "a\u2581 \u2581b", "<s></s><unk><0x0A>", "\x00\ufeff\ufffd", "é😀"],
)
def test_awkward_text_survives(sample):
    assert TRAINED.decode(TRAINED.encode(sample)) == sample


def test_specials_and_digits():
    assert (TRAINED.bos_id, TRAINED.eos_id, TRAINED.vocab_size) == (1, 2, 320)
    assert not {0, 1, 2} & set(TRAINED.encode("<s> the </s> whale"))
    assert len(TRAINED.encode("1851")) == 4
    assert TRAINED.decode([1, *TRAINED.encode("whale"), 2]) == "whale"


def test_batch_is_the_same_as_one_by_one():
    texts = make_texts(5, seed=3)
    assert TRAINED.encode_batch(texts) == [TRAINED.encode(sample) for sample in texts]


def test_training_is_deterministic_and_saving_keeps_the_fingerprint(tmp_path):
    assert train_tokenizer(make_texts(200), 320).fingerprint == TRAINED.fingerprint
    assert train_tokenizer(make_texts(200), 310).fingerprint != TRAINED.fingerprint
    path = TRAINED.save(tmp_path / "t")
    assert path == tmp_path / "t" / "tokenizer.model"
    for where in (path, tmp_path / "t"):
        assert Tokenizer.load(where).fingerprint == TRAINED.fingerprint


def test_very_long_lines_are_learnt_from():
    line = " ".join(random.Random(0).choices(["whale", "ship"], k=3 * LONGEST_LINE // 5))
    assert len(train_tokenizer([line], 285).encode(" whale")) == 1


@settings(max_examples=100, deadline=None)
@given(text)
def test_streamed_pieces_join_to_the_whole(sample):
    stream = TRAINED.stream()
    pieces = [stream.push(id) for id in TRAINED.encode(sample)]
    assert "".join(pieces) + stream.flush() == sample


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 319), max_size=40))
def test_streaming_any_ids_gives_what_decode_gives(ids):
    stream = TRAINED.stream()
    assert "".join(stream.push(id) for id in ids) + stream.flush() == TRAINED.decode(ids)


def test_a_character_comes_whole():
    stream = TRAINED.stream()
    assert [stream.push(id) for id in TRAINED.encode("😀a")] == ["", "", "", "😀", "a"]
    stream = TRAINED.stream()
    assert [stream.push(id) for id in TRAINED.encode("😀")[:2]] == ["", ""] and stream.flush()[0] == "\ufffd"


def test_vocabulary_too_large_or_too_small():
    with pytest.raises(ConfigError) as error:
        train_tokenizer(["one whale"] * 3, 5000)
    largest = int(str(error.value).split("at most ")[1].split()[0])
    assert str(error.value) == (
        f"model.vocab_size=5000: the training text supports at most {largest} tokens; "
        f"set model.vocab_size={largest} or less, or give more text"
    )
    assert train_tokenizer(["one whale"] * 3, largest).vocab_size == largest
    with pytest.raises(ConfigError) as error:
        train_tokenizer(["one whale"] * 3, 97)
    smallest = int(str(error.value).split("at least ")[1].split(";")[0])
    assert str(error.value) == (
        f"model.vocab_size=97: 256 bytes, 3 specials and the text's characters need at least {smallest}; "
        f"set model.vocab_size={smallest} or more"
    )
    assert train_tokenizer(["one whale"] * 3, smallest).vocab_size == smallest


def make_json(path, specials: list[str]) -> None:
    import tokenizers as hf

    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=specials)
    made.train_from_iterator(make_texts(50), trainer)
    made.save(str(path))


def test_tokenizers_json(tmp_path):
    make_json(tmp_path / "tokenizer.json", ["<|endoftext|>", "<start>", "<stop>"])
    loaded = Tokenizer.load(tmp_path)
    assert loaded.bos_id == loaded.eos_id == 0 and loaded.vocab_size == 300
    assert loaded.decode(loaded.encode("  whale é\n")) == "  whale é\n"
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<start>"}, "eos_token": "<stop>"}')
    named = Tokenizer.load(tmp_path)
    assert (named.bos_id, named.eos_id) == (1, 2)
    again = Tokenizer.load(named.save(tmp_path / "copy"))
    assert (again.bos_id, again.eos_id, again.fingerprint) == (1, 2, named.fingerprint)
    stream = again.stream()
    assert "".join(stream.push(id) for id in again.encode("whale 😀 é")) + stream.flush() == "whale 😀 é"


def test_an_old_import_ends_a_text_at_any_of_the_tokens_that_its_generation_config_numbers(tmp_path):
    TRAINED.save(tmp_path)
    for numbered, expected in ((7, (2, 7)), ([5, 2, 7], (2, 5, 7)), (None, (2,))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": numbered}))
        assert Tokenizer.load(tmp_path, imported=True).stop_ids == expected
        assert Tokenizer.load(tmp_path).stop_ids == (2,)  # a run of our own, whose documents end in one token


def test_loading_errors(tmp_path):
    def message(path) -> str:
        with pytest.raises(UserError) as error:
            Tokenizer.load(path)
        return str(error.value)

    assert message(tmp_path / "x.model") == (
        f"tokenizer '{tmp_path}/x.model': no such file; give a .model or .json, or a folder with one"
    )
    (tmp_path / "x.bin").write_bytes(b"")
    assert message(tmp_path / "x.bin") == f"tokenizer '{tmp_path}/x.bin': unknown kind '.bin'; allowed: .model, .json"
    (tmp_path / "y.model").write_bytes(b"junk")
    assert message(tmp_path / "y.model") == (
        f"tokenizer '{tmp_path}/y.model': not a SentencePiece model; give another file"
    )
    (tmp_path / "y.json").write_text("{}")
    assert message(tmp_path / "y.json") == f"tokenizer '{tmp_path}/y.json': not a tokenizers file; give another file"
    make_json(tmp_path / "z.json", ["<start>"])
    assert message(tmp_path / "z.json") == (
        f"tokenizer '{tmp_path}/z.json': cannot tell its bos and eos token; name bos_token and eos_token in a "
        "tokenizer_config.json beside it"
    )


def test_a_literal_space_sign_survives_a_model_that_puts_a_space_in_front():
    """SentencePiece's default, as Llama 2 has it."""
    spaced = Tokenizer(SentencePiece(sentencepiece_model(), "m"))
    for sample in ("A▁B", "▁", "▁ a", "a ▁", " ▁▁b ", "the cat"):
        assert spaced.decode(spaced.encode(sample)) == sample


@pytest.mark.parametrize("kind", ["spaced", "trained", "json", "metaspace"])
@settings(max_examples=50, deadline=None)
@given(text, text)
def test_fragments_join_to_the_text(kind, first, second):
    """In the midst of a text no space is put in front: not before a fragment, and not before a continuation."""
    tokenizer = KINDS[kind]
    lead = tokenizer.encode("x")
    joined = tokenizer.decode([*lead, *(id for ids in tokenizer.encode_inside([first, second]) for id in ids)])
    whole = tokenizer.decode(tokenizer.encode(f"x{first}{second}"))
    assert joined == whole
    found = tokenizer.encode_pair("x" + first, second)
    assert tokenizer.decode([*found.context, *found.continuation]) == whole


def from_json(made) -> Tokenizer:
    return Tokenizer(FastTokenizer(made.to_str().encode(), Path("no folder/tokenizer.json")))


KINDS = {
    "spaced": Tokenizer(SentencePiece(sentencepiece_model(), "m")),
    "trained": TRAINED,
    "json": from_json(byte_level(prefix=True)),
    "metaspace": from_json(metaspace()),
}


def test_words_of_a_document_that_spell_a_special_token_are_text_unless_told_otherwise(tmp_path):
    byte_level(("<|endoftext|>",)).save(str(tmp_path / "tokenizer.json"))
    page = "one<|endoftext|>two"
    loaded = Tokenizer.load(tmp_path)
    as_text, as_control = loaded.for_training("text"), loaded.for_training("control")
    one, two = loaded.encode("one"), loaded.encode("two")
    assert as_control.encode_documents([page]) == [[0, *one, 0, *two, 0]]
    [ids] = as_text.encode_documents([page])
    assert ids.count(0) == 2 and as_text.decode(ids) == page
    assert as_text.encode(page) == loaded.encode_prompt(page)[1:] == [*one, 0, *two]  # who writes a prompt means them
    assert pickle.loads(pickle.dumps(as_text)).encode_documents([page]) == [ids]  # as workers do


def test_a_pack_depends_on_all_that_its_tokens_depend_on(tmp_path):
    made = byte_level(("<|endoftext|>", "<start>", "<stop>"))
    made.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<start>", "eos_token": "<stop>"}')
    named = Tokenizer.load(tmp_path)
    assert named.fingerprint == loaded.fingerprint
    kinds = [one.for_training(how) for one in (loaded, named) for how in ("text", "control")]
    assert len({one.packing_fingerprint for one in kinds}) == 4
    # a SentencePiece model never reads them as tokens: packs made before this was asked are found again
    assert TRAINED.for_training("control").packing_fingerprint == TRAINED.packing_fingerprint == TRAINED.fingerprint
