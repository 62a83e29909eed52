"""A tokenizer as the files that AutoTokenizer reads, encoding every text as ours does, BOS in front.

A SentencePiece BPE becomes a tokenizers BPE. SentencePiece merges the neighbours whose joined piece has the highest
score, which is the order of the vocabulary; every way to join two pieces to a third is a merge here, ranked by the
third. Pieces are written with spaces, not with U+2581 for them: a literal U+2581 is then spelled in bytes, as ours is.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, processors
from tokenizers.models import BPE

from ..data.files import write_atomically
from ..data.tokenizer import JSON_FILE, MODEL_FILE, SPACE, Tokenizer
from ..parts.errors import ConfigError

ModelProto = Any
"""sentencepiece's protocol buffer of a model; its class is made at run time."""

CONFIG_FILE = "tokenizer_config.json"
OWN_FILES = ("config.json", "generation_config.json")  # the export writes its own


def write_tokenizer(tokenizer: Tokenizer | str | Path, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`, beside what a folder of tokenizer files has.

    Settings that are there stay: a chat template, the class. Raises ConfigError when a SentencePiece model does what
    the tokenizers library has no equal for.
    """
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder)
    else:
        for file in Path(tokenizer).iterdir():
            if file.is_file() and file.name not in OWN_FILES:
                shutil.copyfile(file, folder / file.name)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    settings["clean_up_tokenization_spaces"] = False
    if not (folder / JSON_FILE).is_file():
        model = _proto(folder / MODEL_FILE)
        convert(model).save(str(folder / JSON_FILE))
        trainer = model.trainer_spec
        numbers = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
        settings |= {name: model.pieces[i].piece for name, i in numbers.items()}
        settings["split_special_tokens"] = True  # a text that spells <s> is a text, and would become the token
    if (folder / CONFIG_FILE).is_file():
        settings |= json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    write_atomically(folder / CONFIG_FILE, json.dumps(settings, indent=2, ensure_ascii=False).encode())


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
    bos = model.pieces[model.trainer_spec.bos_id].piece
    control = [piece.piece for piece in model.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    fast.add_special_tokens(control)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, ids[bos])]
    )
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
