"""Hugging Face tokenizers files: the backend of a tokenizer.json."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from ..parts.errors import ConfigError
from .hostile import open_fast
from .specials import Specials

JSON_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
# (bos, eos) by the names that published tokenizers use; the first pair that is in the vocabulary counts
_SPECIALS = [
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<bos>", "<eos>"),
    ("[BOS]", "[EOS]"),
    ("<|endoftext|>", "<|endoftext|>"),
]


class FastTokenizer:
    """A Hugging Face tokenizers file. bos and eos: as the tokenizer_config.json beside it names them, or the usual;
    or `numbered`, their ids.
    """

    file = JSON_FILE

    def __init__(self, raw: bytes, path: Path, numbered: tuple[int, int] | None = None):
        self._tokenizer = open_fast(raw, str(path))
        self._tokenizer.no_truncation()  # a file may carry the last call's settings
        self._tokenizer.no_padding()
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        config = path.parent / CONFIG_FILE
        self._settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        self.bos_id, self.eos_id = numbered or self._find_specials(path)

    def _id(self, name: str | None) -> int:
        found = self._tokenizer.token_to_id(name) if name else None
        return -1 if found is None else found

    def _find_specials(self, path: Path) -> tuple[int, int]:
        eos, bos = (_content(self._settings.get(key)) for key in ("eos_token", "bos_token"))
        for first, last in ((bos or eos, eos), *_SPECIALS):
            if min(self._id(first), self._id(last)) >= 0:
                return self._id(first), self._id(last)
        raise ConfigError(
            f"tokenizer {str(path)!r}: cannot tell its bos and eos token; name bos_token and eos_token in a "
            "tokenizer_config.json beside it"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json as it was read, the chat template for one, with eos and bos named if eos was not."""
        if self._id(_content(self._settings.get("eos_token"))) >= 0:
            return self._settings
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        return self._settings | {key: self._tokenizer.id_to_token(i) for key, i in names.items()}

    @property
    def has_special_tokens(self) -> bool:
        """Whether a text could spell a special token."""
        return any(token.special for token in self._tokenizer.get_added_tokens_decoder().values())

    def encode(self, texts: list[str], *, inside: bool = False, specials: bool = True) -> list[list[int]]:
        used = self._inside if inside else self._tokenizer
        # set at every call: a copy for another process comes without it
        used.encode_special_tokens = not specials or bool(self._settings.get("split_special_tokens"))
        return [encoding.ids for encoding in used.encode_batch(texts, add_special_tokens=False)]

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The tokenizer without what it does at the ends of a text: put a space in front, take spaces away."""
        content = json.loads(self._tokenizer.to_str())
        bare = content | {name: _bare(content[name]) for name in ("normalizer", "pre_tokenizer")}
        return tokenizers.Tokenizer.from_str(json.dumps(bare)) if bare != content else self._tokenizer

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def special_names(self) -> dict[int, str]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {id: token.content for id, token in added.items() if token.special}

    def serialize(self) -> bytes:
        return self._tokenizer.to_str().encode()

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the file's own post-processor puts in front of a text and behind it."""
        return around(self._tokenizer)

    def specials_of_source(self) -> Specials:
        """How transformers asks: by the file's post-processor. Settings that want BOS are heeded where there is none:
        GGUF files were imported so.
        """
        bos, eos = (self._id(_content(self._settings.get(key))) for key in ("bos_token", "eos_token"))
        front, back = self.around
        if not front and self._settings.get("add_bos_token") is True:
            front = (self.bos_id,)
        prefix = next(i for i in (bos, eos, self.bos_id) if i >= 0)
        return Specials(self.bos_id, self.eos_id, front, back, prefix, (self.eos_id,))


def around(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a file's own post-processor puts in front of a text and behind it."""
    encoding = tokenizer.encode("a")
    text = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
    first, stop = (text[0], text[-1] + 1) if text else (len(encoding.ids), len(encoding.ids))
    return tuple(encoding.ids[:first]), tuple(encoding.ids[stop:])


def template(tokenizer: tokenizers.Tokenizer, front: tuple[int, ...], back: tuple[int, ...]) -> Any:
    """A post-processor that puts these tokens around a text, and around each of two."""
    names = {i: tokenizer.id_to_token(i) for i in (*front, *back)}

    def one(text: str, kind: int) -> list[str]:
        before, behind = ([f"{names[i]}:{kind}" for i in ids] for ids in (front, back))
        return [*before, f"${text}:{kind}", *behind]

    special = [(name, i) for i, name in names.items()]
    return processors.TemplateProcessing(single=one("A", 0), pair=[*one("A", 0), *one("B", 1)], special_tokens=special)


def _content(token: str | dict | None) -> str | None:
    """A special token in tokenizer_config.json is a string or a record with `content`."""
    return token["content"] if isinstance(token, dict) else token


def _bare(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer without what it does at the ends of a text; None if that was all."""
    if step is None or step["type"] in ("Prepend", "Strip"):
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, name: [part for part in map(_bare, step[name]) if part is not None]}
    return step
