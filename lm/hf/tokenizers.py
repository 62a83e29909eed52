"""Tokenizers of published checkpoints, kept file by file, with bos and eos named where `Tokenizer.load` looks."""

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers

from ..data.files import write_atomically
from ..data.hostile import open_fast
from ..data.tokenizer import CONFIG_FILE, JSON_FILE, MODEL_FILE
from ..parts.errors import CheckpointError, ConfigError, DataError
from .config_file import read_json

# beside the tokenizer itself: chat templates, the special tokens' names
COMPANIONS = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json", "generation_config.json")


def copy_tokenizer(source: Path, config: dict[str, Any], folder: Path) -> None:
    """Copy a checkpoint's tokenizer into `folder`. config: that of the model, which may number bos and eos.

    tokenizer.json is what AutoTokenizer uses where there is one; tokenizer.model is taken only without it.
    Raises ConfigError when there is neither.
    """
    file = next((name for name in (JSON_FILE, MODEL_FILE) if (source / name).is_file()), None)
    if file is None:
        raise ConfigError(f"{source}: holds neither {JSON_FILE} nor {MODEL_FILE}; put the tokenizer's files there")
    folder.mkdir(parents=True)
    for name in (file, *COMPANIONS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = read_json(source / CONFIG_FILE) if (source / CONFIG_FILE).is_file() else {}
    if file == JSON_FILE:
        generation = source / "generation_config.json"
        numbered = config | (read_json(generation) if generation.is_file() else {})
        settings = _named(settings, numbered, _fast(source / file))
    if settings:
        write_settings(folder, settings)


def _fast(file: Path) -> tokenizers.Tokenizer:
    try:
        return open_fast(file.read_bytes(), file.name)
    except DataError as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); get the file again") from None


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """tokenizer_config.json, as AutoTokenizer and `Tokenizer.load` read it."""
    write_atomically(folder / CONFIG_FILE, json.dumps(settings, indent=2, ensure_ascii=False).encode())


def _named(settings: dict[str, Any], numbered: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """`settings` with the tokens that only `numbered` has, by id; of several ends of text the first."""
    found = dict(settings)
    for key in ("bos_token", "eos_token"):
        ids = numbered.get(f"{key}_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        if not found.get(key) and isinstance(first, int) and (token := tokenizer.id_to_token(first)) is not None:
            found[key] = token
    return found
