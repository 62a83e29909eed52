"""Tokenizers of published checkpoints, as transformers reads them.

A tokenizer.json, a SentencePiece model with added tokens, a class that does more than its files say: AutoTokenizer
makes one tokenizers file of each, and that is what a run keeps, with what it puts around a prompt.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tokenizers

from ..data.fast import CONFIG_FILE, JSON_FILE, FastTokenizer
from ..data.files import write_atomically
from ..data.hostile import open_fast
from ..data.specials import Specials
from ..data.tokenizer import COMPANIONS, GENERATION_FILE, MODEL_FILE, TEMPLATES, Tokenizer, stop_ids
from ..parts.errors import CheckpointError, ConfigError, DataError
from .config_file import read_json

FAST = "PreTrainedTokenizerFast"  # the class that takes a tokenizers file as it is
AS_IT_IS = (FAST, "TokenizersBackend")
# settings that repeat what a tokenizers file holds, or name code that would do it otherwise
SAID_BY_FILE = ("added_tokens_decoder", "add_bos_token", "add_eos_token", "add_prefix_space", "auto_map", "legacy")


def copy_tokenizer(source: Path, config: dict[str, Any], folder: Path) -> None:
    """Keep a checkpoint's tokenizer in `folder`. config: that of the model, which may number bos and eos.

    Raises ConfigError when there is none, or transformers cannot read it.
    """
    if not any((source / name).is_file() for name in (JSON_FILE, MODEL_FILE)):
        raise ConfigError(f"{source}: holds neither {JSON_FILE} nor {MODEL_FILE}; put the tokenizer's files there")
    settings = read_json(source / CONFIG_FILE) if (source / CONFIG_FILE).is_file() else {}
    generation = read_json(source / GENERATION_FILE) if (source / GENERATION_FILE).is_file() else {}
    theirs = _read(source, settings)
    folder.mkdir(parents=True)
    for file in (*(source / name for name in COMPANIONS), *source.glob(TEMPLATES)):
        if file.is_file():
            (folder / file.relative_to(source)).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(source))
    raw = _file(theirs)
    write_atomically(folder / JSON_FILE, raw)
    named = {name: str(token) for name, token in theirs.special_tokens_map.items() if isinstance(token, str)}
    kept = {name: value for name, value in settings.items() if name not in SAID_BY_FILE}
    write_settings(folder, kept | named | {"tokenizer_class": FAST})
    _specials(theirs, raw, folder, config | generation).save(folder)


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """tokenizer_config.json, as AutoTokenizer and `Tokenizer.load` read it."""
    write_atomically(folder / CONFIG_FILE, json.dumps(settings, indent=2, ensure_ascii=False).encode())


def from_transformers(theirs: Any) -> Tokenizer:
    """A tokenizer of transformers that runs on the tokenizers library, as ours."""
    with tempfile.TemporaryDirectory() as folder:
        raw = _file(theirs)
        specials = _specials(theirs, raw, Path(folder), {})
        return Tokenizer(FastTokenizer(raw, Path(folder) / JSON_FILE, (specials.bos_id, specials.eos_id)), specials)


def _read(source: Path, settings: dict[str, Any]) -> Any:
    """transformers' tokenizer. A folder that names the plain class is taken at its word, whatever its model type."""
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError:
        raise ConfigError(
            f"{source}: reading a tokenizer needs the transformers package; pip install 'hybridlm[hf]'"
        ) from None
    if (source / JSON_FILE).is_file():
        _check(source / JSON_FILE)
    plain = (source / JSON_FILE).is_file() and settings.get("tokenizer_class") in AS_IT_IS
    kind = PreTrainedTokenizerFast if plain else AutoTokenizer
    try:
        theirs = kind.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its many classes raise
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{source}: transformers cannot read its tokenizer ({why}); put a {JSON_FILE} there and {FAST} as "
            f"tokenizer_class in {CONFIG_FILE}"
        ) from None
    if not getattr(theirs, "is_fast", False):
        raise ConfigError(
            f"{source}: its tokenizer class {type(theirs).__name__} does not run on the tokenizers library; put a "
            f"{JSON_FILE} there and {FAST} as tokenizer_class in {CONFIG_FILE}"
        )
    return theirs


def _check(file: Path) -> None:
    try:
        open_fast(file.read_bytes(), file.name)
    except DataError as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); get the file again") from None


def _file(theirs: Any) -> bytes:
    """The tokenizers file that does what `theirs` does, without the settings of a call."""
    copy = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy.to_str().encode()


def _specials(theirs: Any, raw: bytes, folder: Path, numbered: dict[str, Any]) -> Specials:
    """What stands around a prompt, and around a document: the named tokens, else those that the model numbers."""

    def first(value: Any) -> int | None:
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) and theirs.backend_tokenizer.id_to_token(value) is not None else None

    eos = theirs.eos_token_id if theirs.eos_token_id is not None else first(numbered.get("eos_token_id"))
    bos = theirs.bos_token_id if theirs.bos_token_id is not None else first(numbered.get("bos_token_id"))
    backend = FastTokenizer(raw, folder / JSON_FILE, (eos if bos is None else bos, eos) if eos is not None else None)
    front, back = backend.around
    prefix = next(i for i in (theirs.bos_token_id, theirs.eos_token_id, backend.bos_id) if i is not None)
    return Specials(backend.bos_id, backend.eos_id, front, back, prefix, stop_ids(backend.eos_id, numbered))
