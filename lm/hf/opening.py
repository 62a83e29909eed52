"""Opening a checkpoint: a folder of safetensors, read tensor by tensor, a .gguf file, or a run of this project."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..parts.errors import CheckpointError, ConfigError
from ..run import Run, has_tokenizer
from .config_file import read_json
from .gguf import GGUF
from .source import ModelSource, Stored
from .streaming import DTYPES
from .tokenizers import copy_tokenizer

if TYPE_CHECKING:
    from safetensors import safe_open as Handle

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def open_source(path: str | Path) -> "ModelSource | RunFolder":
    """A folder as save_pretrained writes it, a .gguf file, or the newest checkpoint of a run.

    Raises ConfigError when there is neither, or an adapter beside it; CheckpointError when the files are not whole.
    """
    path = Path(path).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return GGUF(path)
    if (path / "recipe.yaml").is_file():
        return RunFolder(path)
    if adapter := next((name for name in ADAPTER if (path / name).is_file()), None):
        raise ConfigError(
            f"{path}: holds an adapter, {adapter}, which is not applied here; merge it with merge_and_unload of peft "
            "and save the result, or take the adapter's files out of the folder"
        )
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
    """config.json and safetensors: one file, which comes before an index as in transformers, or shards under it."""

    def __init__(self, path: Path):
        self.config = read_json(path / "config.json")
        index = {} if (path / SINGLE).is_file() else _index(path)
        super().__init__(path, sorted(set(index.values())) if index else [_single(path)])
        for name, file in index.items():
            if self._home.get(name) != file:
                raise CheckpointError(
                    f"{path}: tensor {name} is not in {file}, where {INDEX} has it; the shards are of another "
                    "checkpoint than the index, get both again"
                )

    def write_tokenizer(self, folder: Path) -> None:
        copy_tokenizer(self.path, self.config, folder)


class RunFolder(Shards):
    """A run's newest checkpoint, under our own names."""

    def __init__(self, path: Path):
        self.run = Run(path)
        super().__init__(self.run.newest_checkpoint(), [SINGLE])

    def write_tokenizer(self, folder: Path) -> None:
        if not has_tokenizer(self.run.folder):
            raise ConfigError(f"run {str(self.run.folder)!r}: has no tokenizer folder; restore it")
        shutil.copytree(self.run.folder / "tokenizer", folder)


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


def _open(path: Path) -> "Handle":
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); get the file again") from None
