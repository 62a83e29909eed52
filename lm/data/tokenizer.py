"""Tokenizers: SentencePiece BPE trained here, or a SentencePiece .model or tokenizers .json from elsewhere."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ..parts.errors import ConfigError, DataError
from .fast import CONFIG_FILE, JSON_FILE, FastTokenizer
from .files import write_atomically
from .specials import Specials
from .spm import LONGEST_LINE, MODEL_FILE, SPACE, SentencePiece, train

__all__ = [
    "CONFIG_FILE",
    "JSON_FILE",
    "LONGEST_LINE",
    "MODEL_FILE",
    "SPACE",
    "Encoded",
    "SentencePiece",
    "SpecialText",
    "StreamDecoder",
    "Tokenizer",
    "train_tokenizer",
]

GENERATION_FILE = "generation_config.json"
LEAD = 8  # ids that a decoder looks back at: more than the bytes of one character
# beside the tokenizer itself: chat templates, the special tokens' names, how the source samples
COMPANIONS = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json", GENERATION_FILE)
TEMPLATES = "additional_chat_templates/*.jinja"

SpecialText = Literal["text", "control"]
"""What a document's words that spell a special token are: text like all others, or that token."""


class TokenizerBackend(Protocol):
    """What a tokenizer library must do."""

    file: str
    vocab_size: int
    bos_id: int
    eos_id: int

    def encode(self, texts: list[str], *, inside: bool = False, specials: bool = True) -> list[list[int]]:
        """Token ids without BOS and EOS. inside: of texts that others stand before, so that joined tokens give joined
        texts. specials: whether words that spell a special token are that token, if the tokenizer knows such.
        """
        ...

    def decode(self, ids: list[int]) -> str: ...
    def special_names(self) -> dict[int, str]: ...
    def serialize(self) -> bytes: ...


class Encoded(NamedTuple):
    """A context and its continuation in tokens, with nothing in front; `apart` if no token boundary fell between."""

    context: list[int]
    continuation: list[int]
    apart: bool


class Tokenizer:
    """Text to token ids and back.

    `encode` adds no special tokens, `encode_prompt` those that the model is asked with, `encode_documents` BOS and EOS.
    For tokenizers made by `train_tokenizer`, decode(encode(text)) == text for every text.

    front, back: tokens around a prompt: BOS in front for this project's own runs, whatever the source says for an
    imported model. prefix_id: what to score a text behind where nothing is in front. stop_ids: the tokens that end a
    generated text, eos_id first: those of an imported model's generation_config.json. rows: see `for_rows`.
    """

    def __init__(
        self,
        backend: TokenizerBackend,
        specials: Specials | None = None,
        companions: Mapping[str, bytes] | None = None,
        special_text: SpecialText = "text",
    ):
        self._backend = backend
        self.specials = specials or Specials.own(backend.bos_id, backend.eos_id)
        self.companions = dict(companions or {})
        self.special_text: SpecialText = special_text
        self.vocab_size, self.bos_id, self.eos_id = backend.vocab_size, self.specials.bos_id, self.specials.eos_id
        self.front, self.back = self.specials.front, self.specials.back
        self.prefix_id, self.stop_ids = self.specials.prefix_id, self.specials.stop_ids
        self.rows = self.vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, with nothing added around it."""
        return self._encode([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with nothing added around it."""
        return self._encode(texts)

    def encode_prompt(self, text: str) -> list[int]:
        """What a model is asked with: `text` between `front` and `back`.

        For an imported model these are the ids that transformers' tokenizer gives by default.
        """
        return [*self.front, *self.encode(text), *self.back]

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Each text as a document to train on, between BOS and EOS; see `for_training` for special tokens in it."""
        found = self._encode(texts, specials=self.special_text == "control")
        return [[self.bos_id, *ids, self.eos_id] for ids in found]

    def encode_inside(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it reads behind another one, so that joined tokens give the joined texts."""
        return self._encode(list(texts), inside=True)

    def encode_pair(self, context: str, continuation: str) -> Encoded:
        """Tokens of the joined text, cut at the boundary; white space that ends the context goes to the continuation.

        Where a token spans the cut the two are encoded apart: every continuation has a token of its own, and all
        answers to one question are scored after the same context.
        """
        text = context + continuation
        context = context.rstrip()
        before, whole = self.encode(context), self.encode(text)
        if len(whole) > len(before) and whole[: len(before)] == before:
            return Encoded(before, whole[len(before) :], False)
        return Encoded(before, self.encode_inside([text[len(context) :]])[0], True)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids])

    @cached_property
    def special_names(self) -> dict[int, str]:
        """The tokens that `decode` leaves out, by id."""
        return self._backend.special_names()

    def for_rows(self, rows: int) -> "Tokenizer":
        """The same for a model of `rows` rows, where encoding raises DataError for a text with a token beyond them.

        There are such where a token was added and the embedding not resized.
        """
        limited = copy(self)
        limited.rows = rows
        return limited

    def _encode(self, texts: list[str], **how: bool) -> list[list[int]]:
        found = self._backend.encode(texts, **how)
        if self.vocab_size > self.rows:
            for text, ids in zip(texts, found, strict=True):
                self._check_rows(text, ids)
        return found

    def _check_rows(self, text: str, ids: list[int]) -> None:
        if without := [id for id in ids if id >= self.rows]:
            name = self.special_names.get(without[0]) or self.decode(without[:1])
            raise DataError(
                f"text {text[:40]!r}: has the token {name!r}, number {without[0]}, but the model has rows for "
                f"{self.rows} of the tokenizer's {self.vocab_size} tokens; take it out of the text"
            )

    def stream(self, behind: Iterable[int] = ()) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time, after the text of `behind`, which it does not give again."""
        return StreamDecoder(self, behind)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the serialised tokenizer: equal for equal tokenizers, wherever their files are."""
        return hashlib.sha256(self._backend.serialize()).hexdigest()

    @cached_property
    def prompt_fingerprint(self) -> str:
        """The same of everything that a prompt depends on; `fingerprint` itself where it is BOS and the text alone."""
        begins = self.encode_prompt("a")
        if begins == [self.bos_id, *self.encode_inside(["a"])[0]]:
            return self.fingerprint
        return hashlib.sha256(f"{self.fingerprint} {begins}".encode()).hexdigest()

    @property
    def generation(self) -> dict[str, Any]:
        """The generation_config.json of an imported model; empty without."""
        return _json(self.companions, GENERATION_FILE)

    @property
    def packing_fingerprint(self) -> str:
        """The same of everything that `encode_documents` depends on. A SentencePiece model holds all of it."""
        if not isinstance(self._backend, FastTokenizer):
            return self.fingerprint
        as_text = self.special_text == "text" and self._backend.has_special_tokens
        what = f"{self.fingerprint} {self.bos_id} {self.eos_id} {as_text}"
        return hashlib.sha256(what.encode()).hexdigest()

    def for_training(self, special_text: SpecialText) -> "Tokenizer":
        """The tokenizer of a run of this project: BOS in front of every document and prompt.

        special_text: what words of a document are that spell a special token, such as <|endoftext|>.
        """
        return Tokenizer(self._backend, Specials.own(self.bos_id, self.eos_id), special_text=special_text)

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer.model or tokenizer.json into `folder` with all that belongs to it; `load` reads it back.

        Returns the file.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.companions.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_atomically(folder / name, content)
        if isinstance(self._backend, FastTokenizer):
            write_atomically(folder / CONFIG_FILE, json.dumps(self._backend.settings).encode())
        self.specials.save(folder)
        path = folder / self._backend.file
        write_atomically(path, self._backend.serialize())
        return path

    @classmethod
    def load(cls, path: str | Path, *, imported: bool = False, special_text: SpecialText = "text") -> "Tokenizer":
        """Read a SentencePiece .model, a tokenizers .json, or a folder with tokenizer.model or tokenizer.json.

        imported: whether the files are copies of a published model's, made before imports said how to ask them.
        special_text: see `for_training`. Raises ConfigError when there is no such file, it cannot be read, or it has no
        bos and eos token.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            path = next((path / name for name in (MODEL_FILE, JSON_FILE) if (path / name).is_file()), path / MODEL_FILE)
        if not path.is_file():
            raise ConfigError(f"tokenizer {str(path)!r}: no such file; give a .model or .json, or a folder with one")
        if path.suffix not in (".model", ".json"):
            raise ConfigError(f"tokenizer {str(path)!r}: unknown kind {path.suffix!r}; allowed: .model, .json")
        raw, specials = path.read_bytes(), Specials.load(path.parent)
        if path.suffix == ".model":
            backend = SentencePiece(raw, str(path))
        else:
            backend = FastTokenizer(raw, path, specials and (specials.bos_id, specials.eos_id))
        companions = _companions(path.parent, settings=path.suffix == ".model")
        if specials is None and imported:
            specials = _specials_of_files(backend, companions)
        return cls(backend, specials, companions, special_text)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """SentencePiece BPE with byte fallback, split digits and no normalisation: unk 0, bos 1, eos 2, bytes from 3.

    Deterministic. Raises ConfigError when `vocab_size` does not suit the texts.
    """
    return Tokenizer(SentencePiece(train(texts, vocab_size), MODEL_FILE))


def _companions(folder: Path, settings: bool) -> dict[str, bytes]:
    """The files that belong to a tokenizer of `folder`, by their path in it; settings: tokenizer_config.json too."""
    names = (*COMPANIONS, CONFIG_FILE) if settings else COMPANIONS
    files = [*(folder / name for name in names), *sorted(folder.glob(TEMPLATES))]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.is_file()}


def _specials_of_files(backend: "SentencePiece | FastTokenizer", companions: Mapping[str, bytes]) -> Specials:
    """How the files of an old import want to be asked, as far as they say it."""
    if isinstance(backend, FastTokenizer):
        found = backend.specials_of_source()
    else:
        found = Specials.own(backend.bos_id, backend.eos_id)
        if _json(companions, CONFIG_FILE).get("add_bos_token") is False:
            found = replace(found, front=())
    return replace(found, stop_ids=stop_ids(found.eos_id, _json(companions, GENERATION_FILE)))


def stop_ids(eos_id: int, generation: dict[str, Any]) -> tuple[int, ...]:
    """eos_id and all that a generation_config.json numbers."""
    numbered = generation.get("eos_token_id")
    several = numbered if isinstance(numbered, list) else [] if numbered is None else [numbered]
    return tuple(dict.fromkeys((eos_id, *several)))


def _json(companions: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        return json.loads(companions.get(name, b"{}"))
    except ValueError as error:
        raise DataError(f"tokenizer: {name} beside it is not valid JSON ({error}); get the file again") from None


class StreamDecoder:
    """Text of a growing list of ids, piece by piece, never cutting a UTF-8 character.

    The pieces and the final `flush` joined are the decoded whole, if its bytes are UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, behind: Iterable[int] = ()):
        self._tokenizer, self._ids, self._context = tokenizer, list(behind)[-LEAD:], 0
        self._done = len(self._ids)

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
