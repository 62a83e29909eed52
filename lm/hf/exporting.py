"""A HybridLM as a folder that transformers loads: of a family it knows where the arithmetic is the same, else our own.

DST/config.json   generation_config.json   model.safetensors, or numbered shards and model.safetensors.index.json
DST/tokenizer.json   tokenizer_config.json   tokenizer.model (SentencePiece only)
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data.tokenizer import Tokenizer
from ..parts.errors import ConfigError
from .folders import whole_folder
from .formats import FAMILIES, choose_format
from .source import check_float16
from .streaming import write_safetensors
from .tokenizer_files import write_tokenizer

if TYPE_CHECKING:
    from ..model import HybridLM

MAX_SHARD = 5_000_000_000  # bytes


def save_pretrained(
    model: "HybridLM",
    path: str | Path,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    format: str = "auto",
    max_shard: int = MAX_SHARD,
) -> Path:
    """Write the folder `path`, which must be absent or empty, and return it. Weights keep their dtype and their bits.

    format: `llama` (Llama, Mistral, Qwen 2 or 3, whichever it is), `olmo_hybrid`, `qwen3_5`, or `hybridlm`, the model
    type of this project that transformers knows after `import hybridlm`; `auto` takes the first that describes the
    model exactly.
    tokenizer: one, or the folder with its files, written as AutoTokenizer reads it. max_shard: bytes of weights a file.

    Raises ConfigError for an unknown format, a model that `format` cannot describe (naming every option that differs
    or that it does not know), a tokenizer that needs more rows than the model has, and a destination that is not free.
    Nothing is left half-written.
    """
    path, family = Path(path), FAMILIES[choose_format(model.config, format)]
    loaded = Tokenizer.load(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    if loaded is not None and loaded.rows > model.config.vocab_size:
        raise ConfigError(
            f"tokenizer: has {loaded.vocab_size} tokens and the model {model.config.vocab_size}; give the one that the "
            "model was trained with"
        )
    ends = {"bos_token_id": loaded and loaded.bos_id, "eos_token_id": loaded and loaded.eos_id}
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    config = family.hf_config(model.config) | ends | {"dtype": dtype}
    with whole_folder(path) as folder:
        _write_json(folder / "config.json", config)
        _write_weights(folder, _renamed(model, family), max_shard)
        if loaded is not None:
            write_tokenizer(loaded, folder, model.config.context)
        _write_json(folder / "generation_config.json", _generation(loaded, ends))
    return path


def _generation(tokenizer: Tokenizer | None, ends: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json: that of an imported model, its sampling settings too, or the ends of text alone."""
    if tokenizer is None:
        return ends | {"pad_token_id": None}
    stops = list(tokenizer.stop_ids)
    ids = ends | {"eos_token_id": stops if len(stops) > 1 else stops[0]}
    return {"pad_token_id": tokenizer.eos_id} | tokenizer.generation | ids


def _renamed(model: "HybridLM", family: ModuleType) -> dict[str, Tensor]:
    """The tensors under the names of the family, views of ours; a tied one once."""
    weights = model.state_dict()
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    for name, tensor in weights.items():
        check_float16(name, tensor, "the model")
    rows = list(family.tensors(model.config))
    assert {row.name for row in rows} == weights.keys(), "a family's list of tensors is not the model's"
    return {name: part for row in rows for name, part in row.split(weights[row.name]).items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(folder: Path, weights: dict[str, Tensor], max_shard: int) -> None:
    """One file, or numbered shards with an index when one file would be larger than `max_shard` bytes."""
    shards = list(_shards(weights, max_shard))
    places = {}
    for i, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(names, file)
        layout = {name: (tuple(weights[name].shape), weights[name].dtype) for name in names}
        write_safetensors(folder / file, layout, ((name, weights[name]) for name in names))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _shards(weights: dict[str, Tensor], max_shard: int) -> Iterator[list[str]]:
    """Names of the tensors of each file, in order; a tensor larger than a shard has one of its own."""
    names: list[str] = []
    size = 0
    for name, tensor in weights.items():
        if names and size + tensor.nbytes > max_shard:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names
