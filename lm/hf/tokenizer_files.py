"""A tokenizer as the files that AutoTokenizer reads, encoding every text as ours does, prompts with BOS or whatever
else its model is asked with.

A SentencePiece BPE becomes a tokenizers BPE. SentencePiece merges the neighbours whose joined piece has the highest
score, which is the order of the vocabulary; every way to join two pieces to a third is a merge here, ranked by the
third. Pieces are written with spaces, not with U+2581 for them: a literal U+2581 is then spelled in bytes, as ours is.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers
from tokenizers.models import BPE

from ..data.fast import around, template
from ..data.specials import SPECIALS_FILE
from ..data.tokenizer import CONFIG_FILE, GENERATION_FILE, JSON_FILE, MODEL_FILE, SPACE, Tokenizer
from ..parts.errors import ConfigError
from .tokenizers import FAST, SAID_BY_FILE, write_settings

ModelProto = Any
"""sentencepiece's protocol buffer of a model; its class is made at run time."""

OWN_FILES = (GENERATION_FILE, SPECIALS_FILE)  # the export writes its own, and says in tokenizer.json what stands around


def write_tokenizer(tokenizer: Tokenizer | str | Path, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`, beside what else belongs to the tokenizer.

    AutoTokenizer then puts around a text what `Tokenizer.encode_prompt` does. Settings stay, a chat template for one,
    but the class, which is the one that takes tokenizer.json as it is. Raises ConfigError when a SentencePiece model
    does what the tokenizers library has no equal for.
    """
    kept = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
    file = kept.save(folder)
    for name in OWN_FILES:
        (folder / name).unlink(missing_ok=True)
    settings: dict[str, Any] = {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    if file.name == MODEL_FILE:
        model = _proto(file)
        fast = convert(model)
        trainer = model.trainer_spec
        numbers = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
        settings |= {name: model.pieces[i].piece for name, i in numbers.items()}
        settings["split_special_tokens"] = True  # a text that spells <s> is a text, and would become the token
    else:
        fast = tokenizers.Tokenizer.from_file(str(file))
    if around(fast) != (kept.front, kept.back):
        fast.post_processor = template(fast, kept.front, kept.back)
    fast.save(str(folder / JSON_FILE))
    if (folder / CONFIG_FILE).is_file():
        settings |= json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    settings = {name: value for name, value in settings.items() if name not in SAID_BY_FILE}
    write_settings(folder, settings | {"tokenizer_class": FAST})


def _proto(path: Path) -> ModelProto:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(path.read_bytes())
    return model


def convert(model: ModelProto) -> tokenizers.Tokenizer:
    """The tokenizers equal of a SentencePiece model: BPE with byte fallback and without normalisation.

    Raises ConfigError naming every property that has no equal.
    """
    _check(model)
    pieces = {piece.piece if _reserved(piece) else piece.piece.replace(SPACE, " "): piece for piece in model.pieces}
    ids = {text: i for i, text in enumerate(pieces)}
    fast = tokenizers.Tokenizer(
        BPE(
            vocab=ids,
            merges=_merges({text: piece.score for text, piece in pieces.items() if not _reserved(piece)}, ids),
            unk_token=model.pieces[model.trainer_spec.unk_id].piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        fast.normalizer = normalizers.Prepend(" ")
        steps.append(decoders.Strip(" ", 1, 0))
    fast.decoder = decoders.Sequence(steps)
    control = [piece.piece for piece in model.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    fast.add_special_tokens(control)
    return fast


def _reserved(piece: Any) -> bool:
    """Whether a piece stands for no text, or for one byte: it is never the result of a merge."""
    return piece.type != piece.NORMAL


def _merges(scores: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, in the order in which SentencePiece would prefer the joined ones."""
    ways = [
        (-score, ids[whole], i, whole)
        for whole, score in scores.items()
        for i in range(1, len(whole))
        if whole[:i] in scores and whole[i:] in scores
    ]
    return [(whole[:i], whole[i:]) for _, _, i, whole in sorted(ways)]


def _check(model: ModelProto) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = {piece.type for piece in model.pieces}
    wanted = {
        "model type BPE": trainer.model_type == trainer.BPE,
        "byte fallback": trainer.byte_fallback,
        "no normalisation": not normalizer.precompiled_charsmap,
        "remove_extra_whitespaces off": not normalizer.remove_extra_whitespaces,
        "spaces before words, not after": not trainer.treat_whitespace_as_suffix,
        "no user-defined pieces": type(model).SentencePiece.USER_DEFINED not in kinds,
    }
    missing = [name for name, holds in wanted.items() if not holds]
    if missing:
        raise ConfigError(
            f"tokenizer: this SentencePiece model cannot be written for AutoTokenizer, which would need "
            f"{', '.join(missing)}; train with a tokenizers .json, or with hybridlm's own tokenizer"
        )
