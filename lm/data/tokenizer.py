"""Tokenizers: SentencePiece BPE trained here, or a SentencePiece .model or tokenizers .json from elsewhere."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import sentencepiece

from ..parts.errors import ConfigError, DataError
from .files import write_atomically
from .hostile import open_fast

MODEL_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
SPACE = "\u2581"  # SentencePiece writes a space so
LONGEST_LINE = 16384  # characters; SentencePiece leaves out lines of more than 65536 bytes


class TokenizerBackend(Protocol):
    """What a tokenizer library must do."""

    file: str
    vocab_size: int
    bos_id: int
    eos_id: int

    def encode(self, texts: list[str]) -> list[list[int]]: ...
    def decode(self, ids: list[int]) -> str: ...
    def serialize(self) -> bytes: ...


class Tokenizer:
    """Text to token ids and back. `encode` adds no special tokens; packing puts bos and eos around documents.

    For tokenizers made by `train_tokenizer`, decode(encode(text)) == text for every text.
    """

    def __init__(self, backend: TokenizerBackend):
        self._backend = backend
        self.vocab_size, self.bos_id, self.eos_id = backend.vocab_size, backend.bos_id, backend.eos_id

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without bos and eos."""
        return self._backend.encode([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without bos and eos."""
        return self._backend.encode(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids])

    def stream(self) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the serialised tokenizer: equal for equal tokenizers, wherever their files are."""
        return hashlib.sha256(self._backend.serialize()).hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer.model or tokenizer.json into `folder` and return the file; `load` reads it back."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self._backend.file
        if self._backend.file == JSON_FILE:
            write_atomically(folder / CONFIG_FILE, _settings(self._backend))
        write_atomically(path, self._backend.serialize())
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a SentencePiece .model, a tokenizers .json, or a folder with tokenizer.model or tokenizer.json.

        Raises ConfigError when there is no such file, it cannot be read, or it has no bos and eos token.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            path = next((path / name for name in (MODEL_FILE, JSON_FILE) if (path / name).is_file()), path / MODEL_FILE)
        if not path.is_file():
            raise ConfigError(f"tokenizer {str(path)!r}: no such file; give a .model or .json, or a folder with one")
        if path.suffix not in (".model", ".json"):
            raise ConfigError(f"tokenizer {str(path)!r}: unknown kind {path.suffix!r}; allowed: .model, .json")
        raw = path.read_bytes()
        return cls(SentencePiece(raw, str(path)) if path.suffix == ".model" else FastTokenizer(raw, path))


class StreamDecoder:
    """Text of a growing list of ids, piece by piece, never cutting a UTF-8 character.

    The pieces and the final `flush` joined are the decoded whole.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._ids, self._context, self._done = tokenizer, [], 0, 0

    def push(self, id: int) -> str:
        """The text that `id` completes; empty while a character is incomplete."""
        self._ids.append(int(id))
        piece = self._pending()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._context, self._done = self._done, len(self._ids)
        return piece

    def flush(self) -> str:
        """What is left at the end; incomplete characters come as U+FFFD."""
        piece = self._pending()
        self._context, self._done = self._done, len(self._ids)
        return piece

    def _pending(self) -> str:
        # decoded behind the previous piece: some tokenizers drop the space in front of the first token they are given
        before = self._tokenizer.decode(self._ids[self._context : self._done])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]


class SentencePiece:
    """A SentencePiece model."""

    file = MODEL_FILE

    def __init__(self, model: bytes, name: str):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise DataError(f"tokenizer {name!r}: not a SentencePiece model; give another file") from None
        self.vocab_size = self._processor.get_piece_size()
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise ConfigError(f"tokenizer {name!r}: has no bos or no eos token; documents cannot be told apart without")
        self._escape = self._space_escape()

    def _space_escape(self) -> list[int] | None:
        """Bytes for a literal U+2581, which SentencePiece takes for a space; None if the model alters spaces anyway."""
        pieces = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        keeps_spaces = self._processor.decode(self._processor.encode(" a  b")) == " a  b"
        return pieces if keeps_spaces and self._processor.decode(pieces) == SPACE else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [self._encode_escaped(text) for text in texts]

    def _encode_escaped(self, text: str) -> list[int]:
        if self._escape is None or SPACE not in text:
            return self._processor.encode(text)
        first, *rest = (self._processor.encode(part) for part in text.split(SPACE))
        return first + [id for part in rest for id in (*self._escape, *part)]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def serialize(self) -> bytes:
        return self._model


# (bos, eos) by the names that published tokenizers use; the first pair that is in the vocabulary counts
_SPECIALS = [
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<bos>", "<eos>"),
    ("[BOS]", "[EOS]"),
    ("<|endoftext|>", "<|endoftext|>"),
]


class FastTokenizer:
    """A Hugging Face tokenizers file. bos and eos: as the tokenizer_config.json beside it names them, or the usual."""

    file = JSON_FILE

    def __init__(self, raw: bytes, path: Path):
        self._tokenizer = open_fast(raw, str(path))
        self._tokenizer.no_truncation()  # a file may carry the last call's settings
        self._tokenizer.no_padding()
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        config = path.parent / CONFIG_FILE
        self.settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        self.bos, self.eos = self._find_specials(path)
        self.bos_id, self.eos_id = self._id(self.bos), self._id(self.eos)

    def _id(self, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        return -1 if found is None else found

    def _find_specials(self, path: Path) -> tuple[str, str]:
        eos, bos = (_content(self.settings.get(key)) for key in ("eos_token", "bos_token"))
        for first, last in ((bos or eos or "", eos or ""), *_SPECIALS):
            if min(self._id(first), self._id(last)) >= 0:
                return first, last
        raise ConfigError(
            f"tokenizer {str(path)!r}: cannot tell its bos and eos token; name bos_token and eos_token in a "
            "tokenizer_config.json beside it"
        )

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def serialize(self) -> bytes:
        return self._tokenizer.to_str().encode()


def _content(token: str | dict | None) -> str | None:
    """A special token in tokenizer_config.json is a string or a record with `content`."""
    return token["content"] if isinstance(token, dict) else token


def _settings(backend: TokenizerBackend) -> bytes:
    """tokenizer_config.json as it was read, the chat template for one, with bos and eos named."""
    assert isinstance(backend, FastTokenizer)
    return json.dumps({**backend.settings, "bos_token": backend.bos, "eos_token": backend.eos}).encode()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """SentencePiece BPE with byte fallback, split digits and no normalisation: unk 0, bos 1, eos 2, bytes from 3.

    Deterministic. Raises ConfigError when `vocab_size` does not suit the texts.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=4 * LONGEST_LINE,
            num_threads=1,  # the number is stored in the model and would change its fingerprint
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _vocab_error(str(error), vocab_size) from None
    return Tokenizer(SentencePiece(model.getvalue(), MODEL_FILE))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), LONGEST_LINE):
                yield line[start : start + LONGEST_LINE].replace("\0", "")


def _vocab_error(message: str, vocab_size: int) -> ConfigError:
    if found := re.search(r"too high.*<= (\d+)", message):
        return ConfigError(
            f"model.vocab_size={vocab_size}: the training text supports at most {found[1]} tokens; "
            f"set model.vocab_size={found[1]} or less, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return ConfigError(
            f"model.vocab_size={vocab_size}: 256 bytes, 3 specials and the text's characters need at least {found[1]}; "
            f"set model.vocab_size={found[1]} or more"
        )
    return ConfigError(f"model.vocab_size={vocab_size}: the tokenizer could not be trained: {message}")
