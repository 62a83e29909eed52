"""Checkpoints from elsewhere become run folders or models, tensor by tensor: never two copies of the weights at once.

A run folder keeps the dtype that the weights were stored in, so that an export gives back the same bits.
`load_run` computes in float32 whatever it is, `load_pretrained` in the stored dtype unless told otherwise.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from ..data.files import write_atomically
from ..data.tokenizer import JSON_FILE, Tokenizer
from ..mixers.attention.head_options import HeadsConfig
from ..model import HybridLM
from ..parts.errors import Caution, ConfigError
from ..parts.float32 import Float32Module
from ..recipe.model import ModelConfig
from ..recipe.recipe import Recipe
from ..run import IMPORTED, Run, code_revision
from ..train.checkpoint import FORMAT
from .config_file import ConfigFile, read_json
from .families import hybridlm
from .families.stacked import SavedTensor, Stacked
from .folders import check_free, whole_folder
from .formats import family_of, tensors_of
from .heads import with_heads
from .opening import RunFolder, open_source
from .source import ModelSource, Weights, check, check_float16
from .streaming import write_safetensors


def import_checkpoint(
    src: str | Path, dst: str | Path, dtype: torch.dtype | None = None, heads: HeadsConfig | None = None
) -> Run:
    """Make the run folder `dst` of a checkpoint: a folder of safetensors, a .gguf file, or the newest one of a run.

    dtype: of the weights on disk; None keeps each as it is stored, float32 where it was quantised. heads: which ones a
    token uses from then on, see `with_heads`; the weights stay as they are. Training the run goes on from these weights
    with a new optimizer; the recipe of a run is kept. The folder is written aside and renamed when it is whole. Raises
    ConfigError or CheckpointError, before anything is written, when the source is not whole or of a model type that is
    not read, or there is something at `dst`.
    """
    dst = Path(dst).expanduser()
    check_free(dst)
    source = open_source(src)
    model, plan = _plan(source)
    if heads is not None:
        model = with_heads(model, heads, src)
    with whole_folder(dst) as folder:
        source.write_tokenizer(folder / "tokenizer")
        _check_rows(source, folder / "tokenizer", model.vocab_size)
        types = {row.name: dtype or _dtype(source, [row]) for row in plan}
        step = folder / "checkpoints" / "step-000000"
        step.mkdir(parents=True)
        layout = {row.name: (row.shape, types[row.name]) for row in plan}
        write_safetensors(step / "model.safetensors", layout, _join(source, plan))
        if isinstance(source, RunFolder):
            recipe = _recipe_again(source.run, dst, model)
        else:
            recipe = _recipe(source, dst, model, set(types.values()))
        state = {"format": FORMAT, "step": 0, "architecture": recipe.model.model_dump(mode="json"), "extra": {}}
        write_atomically(step / "state.json", json.dumps(state, indent=1).encode())
        write_atomically(folder / "recipe.yaml", recipe.to_yaml().encode())
        write_atomically(folder / "code.json", json.dumps(code_revision(), indent=1).encode())
    return Run(dst)


import_llama = import_checkpoint  # older scripts use this name


def load_pretrained(path: str | Path, *, dtype: torch.dtype | None = None) -> HybridLM:
    """A model in evaluation mode from a run folder, a checkpoint folder of a model type that is read, or a .gguf file.

    dtype: of the parameters; None takes the widest that is stored. Parameters that a mixer keeps in float32 stay so.
    Raises ConfigError or CheckpointError as `import_checkpoint` does.
    """
    source = open_source(path)
    model, plan = _plan(source)
    return _fill(model, source, plan, dtype)


def read_model(path: str | Path) -> ModelConfig:
    """The model that `load_pretrained` would load, without its weights. Raises as that does."""
    return _plan(open_source(path))[0]


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that an import would keep. Raises ConfigError where there is none."""
    source = open_source(path)
    if isinstance(source, RunFolder):
        return source.run.tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        source.write_tokenizer(Path(folder) / "tokenizer")
        return Tokenizer.load(Path(folder) / "tokenizer", imported=True).for_rows(_plan(source)[0].vocab_size)


def _plan(source: ModelSource | RunFolder) -> tuple[ModelConfig, list[Stacked]]:
    """The model that a source describes, and where each of its tensors comes from, both checked."""
    if isinstance(source, RunFolder):
        model = source.run.recipe.model
        own = (Stacked(row.name, (SavedTensor(row.name, row.shape),)) for row in hybridlm.tensors(model))
        return model, check(source, own)
    try:
        family = family_of(source.config)
        ConfigFile.parse(source.config, where="config.json")
        section = family.recipe_section(source.config)
    except ConfigError as error:
        raise ConfigError(f"{source.path}: {error}") from None
    except KeyError as error:
        raise ConfigError(f"{source.path}: config.json: {error} missing; get the whole file") from None
    model = ModelConfig.parse(section, where=str(source.path))
    return model, check(source, tensors_of(family, model, source.stored))


def _check_rows(source: ModelSource | RunFolder, folder: Path, rows: int) -> None:
    """A word where tokens were added and the embedding not resized.

    Raises ConfigError where other tokens, or those around every prompt, have no row.
    """
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size <= rows:
        return
    has = f"{source.path}: its tokenizer has {tokenizer.vocab_size} tokens and the model {rows}"
    listed = read_json(folder / JSON_FILE).get("added_tokens", []) if (folder / JSON_FILE).is_file() else []
    added = {token["id"] for token in listed} - {*tokenizer.front, *tokenizer.back, tokenizer.prefix_id}
    if not added.issuperset(range(rows, tokenizer.vocab_size)):
        raise ConfigError(f"{has}; put the tokenizer there that belongs to the model")
    word = "the rest were added to the tokenizer alone, and a text with one of them cannot be scored or continued"
    warn(f"{has}; {word}", Caution, stacklevel=3)


def _join(source: Weights, plan: Iterable[Stacked]) -> Iterator[tuple[str, Tensor]]:
    """Our tensors, one at a time."""
    for row in plan:
        yield row.name, row.join([source.read(part.name) for part in row.parts])


def _dtype(source: Weights, plan: Iterable[Stacked]) -> torch.dtype:
    """The widest dtype that is stored."""
    return reduce(torch.promote_types, (source.stored[part.name].dtype for row in plan for part in row.parts))


@torch.no_grad()
def _fill(model: ModelConfig, source: Weights, plan: list[Stacked], dtype: torch.dtype | None) -> HybridLM:
    """A model with these weights; nothing is initialised that they replace."""
    with torch.device("meta"):
        net = HybridLM(model)
    fixed = {
        f"{path}.{name}"
        for path, module in net.named_modules()
        if isinstance(module, Float32Module)
        for name in module.float32_parameters
    }
    net = net.to(dtype or _dtype(source, [row for row in plan if row.name not in fixed])).to_empty(device="cpu")
    if model.tie_embeddings:
        net.lm_head.weight = net.embed.weight
    state = net.state_dict()
    for name, tensor in _join(source, plan):
        state[name].copy_(tensor)
        check_float16(name, state[name], source.path)
    return net.eval()


def _recipe_again(run: Run, dst: Path, model: ModelConfig) -> Recipe:
    """The recipe of a run for another one with its weights; an import's has the tokenizer of its own folder."""
    recipe = run.recipe.model_dump(mode="json", exclude={"grid"})
    recipe |= {"name": _name(dst), "model": model.model_dump(exclude_unset=True)}
    recipe["train"]["out"] = str(dst)
    path = run.recipe.data.tokenizer.path
    if path is not None and Path(path).resolve() == (run.folder / "tokenizer").resolve():
        recipe["data"]["tokenizer"]["path"] = str(dst.resolve() / "tokenizer")
    return Recipe.parse(recipe, where=str(run.folder))


def _name(dst: Path) -> str:
    return re.sub(r"[^\w.-]+", "_", dst.name)


def _recipe(source: ModelSource, dst: Path, model: ModelConfig, dtypes: set[torch.dtype]) -> Recipe:
    """How to score the imported model, and to go on training it until someone says better."""
    half = torch.float32 not in dtypes and torch.float64 not in dtypes
    train: dict[str, Any] = {
        "steps": 1000,
        "batch": 8,
        "micro_batch": 1,
        "precision": "bf16" if half else "fp32",
        "zero_stage": 0,
        "checkpoint": {"every": 100, "keep_every": 1000},  # step 0, the imported weights, is kept
        "out": str(dst),
    }
    recipe = {
        "name": _name(dst),
        "description": f"{IMPORTED}{source.path.name}; data.train stands for yours",
        "model": model.model_dump(exclude_unset=True),
        "data": {
            "train": [{"name": "sotu", "select": {"field": "year", "max": 2014}}],
            "valid": {"recent": [{"name": "sotu", "select": {"field": "year", "min": 2015}}]},
            "tokenizer": {"kind": "file", "path": str(dst.resolve() / "tokenizer")},
        },
        "optim": {"lr": 1e-4},  # the weights are far from random: a tenth or less of what pretraining starts with
        "train": train,
    }
    return Recipe.parse(recipe, where=str(source.path))
