"""Tokenizer and GGUF files that are damaged or mean harm: one line within seconds, and no memory taken by them."""

import json
import os
import resource
import struct
import time
from pathlib import Path

import pytest

from hybridlm.lm.data import hostile
from hybridlm.lm.data.tokenizer import Tokenizer
from hybridlm.lm.hf.config_file import read_json
from hybridlm.lm.hf.gguf import GGUF
from hybridlm.lm.hf.gguf_header import check_header
from hybridlm.lm.parts.errors import CheckpointError, UserError

MUCH = 200 << 20  # bytes that no refusal may take


def string(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


def header(n_tensors: int, n_keys: int, *parts: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(parts)


def array(kind: int, n: int, content: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, kind, n) + content


ARCHITECTURE = string("general.architecture") + struct.pack("<I", 8) + string("llama")
GGUFS = {
    "nothing": b"",
    "zeros": bytes(4096),
    "only the magic": b"GGUF",
    "version 99": header(0, 0, version=99),
    "2^40 tensors": header(2**40, 0),
    "2^63 keys": header(0, 2**63),
    "an array of 2^40 strings": header(0, 1, string("a"), array(8, 2**40)),
    "an array of 2^40 bytes": header(0, 1, string("a"), array(0, 2**40)),
    "an array of arrays": header(0, 1, string("a"), array(9, 10, array(9, 10) * 10)),
    "a string of 2^62 bytes": header(0, 1, string("a", 2**62)),
    "a value of no type": header(0, 1, string("a"), struct.pack("<I", 77)),
    "a tensor of 2^80 elements": header(1, 0, string("t"), struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)),
    "a tensor of 2^31 dimensions": header(1, 0, string("t"), struct.pack("<I", 2**31)),
    "a tensor behind the end": header(1, 0, string("t"), struct.pack("<IQIQ", 1, 4, 0, 2**40)),
    "cut off in the middle": header(0, 2, ARCHITECTURE),
}


@pytest.fixture
def within_seconds():
    """Fails a test that took long or much memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - started < 5
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MUCH


def one_line(error: Exception, path: Path) -> None:
    said = str(error)
    assert str(path) in said and "\n" not in said and len(said) < 400 + len(str(path))


@pytest.mark.parametrize("what", GGUFS)
def test_a_gguf_file_that_lies_about_its_sizes(what, tmp_path, within_seconds):
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUFS[what])
    with pytest.raises(CheckpointError, match="not a whole GGUF file") as error:
        check_header(path)
    one_line(error.value, path)


def test_a_whole_header_is_not_refused(tmp_path):
    path = tmp_path / "model.gguf"
    floats = string("floats") + array(6, 3, struct.pack("<fff", 1, 2, 3))
    names = string("names") + array(8, 2, string("a") + string("bc"))
    tensor = string("t") + struct.pack("<IQQIQ", 2, 2, 2, 0, 0)
    path.write_bytes(header(1, 3, ARCHITECTURE, floats, names, tensor, bytes(64)))
    check_header(path)


def test_what_is_no_file_at_all(tmp_path, within_seconds):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf", tmp_path / "nowhere.gguf"):
        with pytest.raises(CheckpointError, match=r"no file; give a \.gguf file"):
            check_header(path)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([], "general.architecture is None"),
        ([ARCHITECTURE], "lacks llama.embedding_length"),
        (
            [
                ARCHITECTURE,
                *(
                    string(f"llama.{key}") + struct.pack("<II", 4, 0)
                    for key in ("embedding_length", "feed_forward_length", "block_count", "attention.head_count")
                ),
                *(
                    string(f"llama.{key}") + struct.pack("<II", 4, 0)
                    for key in ("attention.head_count_kv", "context_length")
                ),
                string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5),
            ],
            "token_embd.weight is missing",
        ),
    ],
)
def test_metadata_that_make_no_model(keys, says, tmp_path, within_seconds):
    path = tmp_path / "model.gguf"
    path.write_bytes(header(0, len(keys), *keys, bytes(64)))
    with pytest.raises(UserError, match=says) as error:
        GGUF(path)
    one_line(error.value, path)


def tokenizer_json(**parts: object) -> bytes:
    vocab = {"<s>": 0, "</s>": 1, "a": 2}
    whole = {"version": "1.0", "model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": [], **parts}
    return json.dumps(whole).encode()


def split(regex: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


TOKENIZERS = {
    "nothing": b"",
    "zeros": bytes(4096),
    "a list": b"[]",
    "cut off": tokenizer_json()[:-20],
    "nested deep": b'{"model":' + b"[" * 100_000,
    "no tokens": tokenizer_json(model={"type": "BPE", "vocab": {}, "merges": []}),
    "a huge id": tokenizer_json(model={"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}),
    "a regex that never ends": tokenizer_json(pre_tokenizer=split("(a+)+$")),
    "a regex that is none": tokenizer_json(pre_tokenizer=split("(((")),
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_tokenizer_file_that_is_none_or_never_ends(what, tmp_path, within_seconds):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(TOKENIZERS[what])
    with pytest.raises(UserError) as error:
        Tokenizer.load(path)
    one_line(error.value, path)


def test_a_tokenizer_that_takes_long_is_left_behind(monkeypatch):
    monkeypatch.setattr(hostile, "SECONDS", 0.05)

    class Slow:
        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> None:
            time.sleep(0.5)

    with pytest.raises(UserError, match="takes more than 0 s for 14 words of 1,024 characters"):
        hostile._check_that_it_ends(Slow(), "x")  # type: ignore[arg-type]


def test_a_good_tokenizer_with_a_regex_is_opened():
    raw = tokenizer_json(pre_tokenizer=split(r"\s+|\w+"))
    assert hostile.open_fast(raw, "x").get_vocab_size() == 3


def test_json_that_is_nested_deep(tmp_path, within_seconds):
    path = tmp_path / "config.json"
    path.write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="not valid JSON") as error:
        read_json(path)
    one_line(error.value, path)
