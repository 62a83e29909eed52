"""SentencePiece models: the backend of a tokenizer.model, and the training of one."""

import io
import re
from collections.abc import Iterable, Iterator
from functools import cached_property

import sentencepiece

from ..parts.errors import ConfigError, DataError

MODEL_FILE = "tokenizer.model"
SPACE = "\u2581"  # SentencePiece writes a space so
LONGEST_LINE = 16384  # characters; SentencePiece leaves out lines of more than 65536 bytes


class SentencePiece:
    """A SentencePiece model. Special tokens that a text spells are text."""

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

    @cached_property
    def _inside(self) -> sentencepiece.SentencePieceProcessor:
        """The model without what it does at the ends of a text: put a space in front, take spaces away."""
        from sentencepiece import sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString(self._model)
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    @cached_property
    def _prefix(self) -> str:
        """The space that the model puts in front of a text, or nothing."""
        return " " if self._processor.encode("a") != self._inside.encode("a") else ""

    def encode(self, texts: list[str], *, inside: bool = False, specials: bool = True) -> list[list[int]]:
        del specials
        if self._escape is None:
            return [(self._inside if inside else self._processor).encode(text) for text in texts]
        return [self._encode_escaped(text if inside or not text else self._prefix + text) for text in texts]

    def _encode_escaped(self, text: str) -> list[int]:
        first, *rest = (self._inside.encode(part) for part in text.split(SPACE))
        return first + [id for part in rest for id in (*self._escape, *part)]  # type: ignore[misc]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def special_names(self) -> dict[int, str]:
        ids = filter(self._processor.is_control, range(self.vocab_size))
        return {id: self._processor.id_to_piece(id) for id in ids}

    def serialize(self) -> bytes:
        return self._model


def train(texts: Iterable[str], vocab_size: int) -> bytes:
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
    return model.getvalue()


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
