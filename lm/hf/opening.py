"""Checkpoints of the Llama family on disk: a folder of safetensors, read tensor by tensor, and the checks before it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..parts.errors import CheckpointError, ConfigError
from .families.stacked import Stacked

if TYPE_CHECKING:
    from safetensors import safe_open as Handle

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Stored(NamedTuple):
    """A tensor as it lies on the disk; `dtype` is what reading it gives."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Weights(Protocol):
    """Tensors on the disk by name; `path` is for messages."""

    path: Path
    stored: dict[str, Stored]

    def read(self, name: str) -> Tensor:
        """One tensor, whole."""
        ...


class Source(Weights, Protocol):
    """Where a model comes from: weights, a configuration in the terms of transformers, and a tokenizer."""

    config: dict[str, Any]

    def write_tokenizer(self, folder: Path) -> None:
        """The files from which `Tokenizer.load` and AutoTokenizer make this model's tokenizer."""
        ...


def open_source(path: str | Path) -> Source:
    """A folder as save_pretrained writes it, or a .gguf file.

    Raises ConfigError when there is neither, CheckpointError when the files are not whole.
    """
    path = Path(path).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        from .gguf import GGUF

        return GGUF(path)
    if not (path / "config.json").is_file():
        missing = "is no .gguf file" if path.exists() else "no such file or folder"
        what = "holds no config.json" if path.is_dir() else missing
        raise ConfigError(f"{path}: {what}; give a folder with config.json and safetensors, or a .gguf file")
    return Folder(path)


class Shards:
    """The tensors of some safetensors files of one folder.

    A file is open while a tensor of it is read: pages stay mapped, and count as memory, as long as it is.
    """

    def __init__(self, path: Path, files: Iterable[str]):
        self.path = path
        self.stored: dict[str, Stored] = {}
        self._home: dict[str, str] = {}
        for file in files:
            with _open(path / file) as opened:
                names = opened.keys()
                self.stored |= {name: self._look_up(name, opened.get_slice(name)) for name in names}
            self._home |= dict.fromkeys(names, file)

    def read(self, name: str) -> Tensor:
        with _open(self.path / self._home[name]) as file:
            return file.get_tensor(name)

    def _look_up(self, name: str, piece: Any) -> Stored:
        kind = piece.get_dtype()
        if kind not in DTYPES:
            raise ConfigError(
                f"{self.path}: tensor {name} is stored as {kind}; allowed: {', '.join(DTYPES)}. Dequantise the "
                "checkpoint first, or convert the unquantised original"
            )
        return Stored(tuple(piece.get_shape()), DTYPES[kind])


class Folder(Shards):
    """config.json and safetensors: one file, or shards under an index."""

    def __init__(self, path: Path):
        self.config = read_json(path / "config.json")
        index = _index(path)
        super().__init__(path, sorted(set(index.values())) if index else [_single(path)])
        for name, file in index.items():
            if self._home.get(name) != file:
                raise CheckpointError(
                    f"{path}: tensor {name} is not in {file}, where {INDEX} has it; the shards are of another "
                    "checkpoint than the index, get both again"
                )

    def write_tokenizer(self, folder: Path) -> None:
        from .tokenizers import copy_tokenizer

        copy_tokenizer(self.path, self.config, folder)


def _index(path: Path) -> dict[str, str]:
    """Tensor to shard; empty without an index. Raises CheckpointError for shards that are not in the folder."""
    if not (path / INDEX).is_file():
        return {}
    index = read_json(path / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or any(Path(str(name)).name != name for name in index.values()):
        raise CheckpointError(
            f"{path / INDEX}: weight_map must give a file of this folder for every tensor; get the file again"
        )
    shards = sorted(set(index.values()))
    if missing := [name for name in shards if not (path / name).is_file()]:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(shards)} shards missing: {', '.join(missing[:3])}; {INDEX} names them, "
            "get the checkpoint's remaining files"
        )
    return index


def _single(path: Path) -> str:
    """The one file of weights. Raises ConfigError when there are only pickles, CheckpointError without any."""
    if (path / SINGLE).is_file():
        return SINGLE
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise ConfigError(
            f"{path}: weights as pickles only ({', '.join(pickles[:3])}), which can run code and are not read; save "
            "the model again as safetensors"
        )
    raise CheckpointError(f"{path}: holds neither {SINGLE} nor {INDEX}; get the checkpoint's weights")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError when the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); get the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no JSON object but a {type(found).__name__}; get the file again")
    return found


def _open(path: Path) -> "Handle":
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); get the file again") from None


def check(source: Weights, wanted: Iterable[Stacked]) -> list[Stacked]:
    """`wanted` as a list, if the source has exactly these tensors with these shapes.

    What is not learned may lie there too: inverse frequencies of old files, and a tied head beside its embedding.
    Raises CheckpointError that names the first tensor that is missing, unexpected or of another shape.
    """
    plan = list(wanted)
    shapes = {part.name: part.shape for stacked in plan for part in stacked.parts}
    for name, shape in shapes.items():
        if name in source.stored and source.stored[name].shape != shape:
            raise CheckpointError(
                f"{source.path}: tensor {name} has shape {list(source.stored[name].shape)}, its config says "
                f"{list(shape)}; restore the config that belongs to these weights"
            )
    if missing := [name for name in shapes if name not in source.stored]:
        fix = "get the whole checkpoint"
        if missing == [HEAD]:
            fix = "if the head is the embedding, set tie_word_embeddings to true in config.json"
        wants = f"its config says {list(shapes[missing[0]])}"
        raise CheckpointError(f"{source.path}: tensor {_several(missing)} missing, {wants}; {fix}")
    extra = [name for name in source.stored if name not in shapes and not name.endswith("rotary_emb.inv_freq")]
    if extra == [HEAD]:
        _check_tied(source)
    elif extra:
        has = f"of shape {list(source.stored[extra[0]].shape)}"
        fix = "restore the config that belongs to these weights"
        raise CheckpointError(f"{source.path}: tensor {_several(extra)} unexpected, {has}; {fix}")
    return plan


def _several(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _check_tied(source: Weights) -> None:
    if not torch.equal(source.read(HEAD), source.read(EMBEDDING)):
        raise CheckpointError(
            f"{source.path}: tensor {HEAD} differs from {EMBEDDING}, to which the config ties it; set "
            "tie_word_embeddings to false in config.json to keep both"
        )
