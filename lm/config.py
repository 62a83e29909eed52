"""The recipe: one strict tree that says which model is trained on which data, how, and how it is scored.

A recipe is a YAML file. `extends: NAME` starts from another recipe; `KEY=VALUE` overrides with dotted keys come last.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import Field, create_model, model_validator

from .eval_config import EvalConfig
from .grid import GridConfig, Variant
from .mixers import MIXERS
from .mixers.base import MixerConfig
from .strict import ConfigError, Strict, nearest

if TYPE_CHECKING:
    from .model.layout import LayerSpec

RECIPES = Path(__file__).parents[1] / "recipes"

Layer = str | dict[str, dict[str, Any]]
"""A layer is a mixer's name, or `{name: {option: value}}` to set options for this layer alone."""


class FFNConfig(Strict):
    """SwiGLU: w_down(silu(x w_gate) * (x w_up)). `hidden` defaults to 8/3 d_model rounded up to `multiple_of`."""

    hidden: int | None = Field(default=None, gt=0)
    multiple_of: int = Field(default=64, gt=0)
    bias: bool = False

    def width(self, d_model: int) -> int:
        """`hidden`, or its default for a model of this width."""
        return self.hidden or -(-8 * d_model // (3 * self.multiple_of)) * self.multiple_of


class BaseModelConfig(Strict):
    """A pre-norm decoder. Give the layers by exactly one of `pattern`, `ratio` and `layers`.

    Each registered mixer has a section of its own name here; sizes left out follow from `d_model` and `context`.
    """

    vocab_size: int = Field(default=4096, gt=1)
    d_model: int = Field(default=256, gt=0)
    n_layers: int = Field(default=8, gt=0)
    context: int = Field(default=512, gt=0, description="tokens per training sequence")
    pattern: list[Layer] | None = Field(default=None, min_length=1)
    ratio: dict[str, int] | None = None
    layers: list[Layer] | None = None
    remainder: Literal["error", "cut"] = "error"
    """What a period of `pattern` or `ratio` that does not divide `n_layers` is: an error, or cut where the layers end;
    a kind of layer that is then left out altogether takes the last layer."""
    positions: Literal["none", "learned"] = "none"
    """`learned` adds an embedding of the position, up to `context`, to that of the token; RoPE belongs to attention."""
    ffn: FFNConfig | None = FFNConfig()
    """null leaves the feed-forward out of every layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the embedding dropped in training")
    norm_eps: float = Field(default=1e-6, gt=0)
    zero_centered_norms: bool = False
    """Norms of the residual stream, of queries and of keys multiply by 1 + weight, the weight starting at 0."""
    tie_embeddings: bool = True
    logit_softcap: float | None = Field(default=None, gt=0, description="logits become c * tanh(logits / c)")
    z_loss: float = Field(default=0.0, ge=0, description="weight of mean(logsumexp(logits)^2)")
    init_std: float | None = Field(default=None, gt=0, description="default 0.02 * sqrt(512 / d_model), at most 0.04")

    @model_validator(mode="after")
    def _layers_make_sense(self) -> Self:
        self.layer_specs()
        return self

    def layer_specs(self) -> "list[LayerSpec]":
        """The layers in order, each with its mixer's resolved options."""
        from .model.layout import layer_specs

        return layer_specs(self)

    def mixer_options(self, name: str) -> MixerConfig:
        """This model's section for the mixer `name`."""
        return getattr(self, name)


if TYPE_CHECKING:
    ModelConfig = BaseModelConfig
else:
    ModelConfig = create_model(
        "ModelConfig",
        __base__=BaseModelConfig,
        **{name: (mixer.Config, Field(default_factory=mixer.Config)) for name, mixer in MIXERS.items()},
    )


class Select(Strict):
    """Which documents of a source are taken: all conditions must hold. Fields come from the documents' metadata."""

    field: str | None = Field(default=None, description="metadata field that min, max, among and exclude look at")
    min: int | float | str | None = None
    max: int | float | str | None = None
    among: list[str | int] | None = None
    exclude: list[str | int] | None = None
    hash: tuple[float, float] | None = Field(default=None, description="[lo, hi) of the document id's hash, in [0, 1]")

    @model_validator(mode="after")
    def _field_given(self) -> Self:
        if self.field is None and any(x is not None for x in (self.min, self.max, self.among, self.exclude)):
            raise ValueError("select: min, max, among and exclude need field=, the metadata field they look at")
        if self.hash and not 0 <= self.hash[0] < self.hash[1] <= 1:
            raise ValueError(f"select.hash: {list(self.hash)} is no interval; give 0 <= lo < hi <= 1, e.g. [0.02, 1.0]")
        return self


class SourceConfig(Strict):
    """A corpus. `name` is a registered source (`hybridlm fetch --list`), or give `format` and `path`."""

    name: str
    format: Literal["registered", "json", "parquet", "text", "folder", "hub"] = "registered"
    path: str | None = Field(default=None, description="file, glob, folder, or hub data set as NAME or NAME:CONFIG")
    text_field: str = "text"
    split: str = "train"
    max_bytes: int | None = Field(
        default=None, gt=0, description="stop after this many bytes of text, e.g. of an endless stream"
    )
    weight: float | None = Field(
        default=None, gt=0, description="share of the mixture; default: in proportion to tokens"
    )
    select: Select = Select()

    @model_validator(mode="after")
    def _path_given(self) -> Self:
        if (self.path is None) != (self.format == "registered"):
            raise ValueError(
                f"source {self.name!r}: format={self.format} {'needs' if self.path is None else 'takes no'} path"
            )
        return self


class TokenizerConfig(Strict):
    """`train` a SentencePiece BPE on the training documents, or load a `file`: SentencePiece or tokenizers JSON."""

    kind: Literal["train", "file"] = "train"
    path: str | None = Field(default=None, description="kind=file: the tokenizer file")
    max_bytes: int = Field(default=50_000_000, gt=0, description="kind=train: bytes of text to learn from")

    @model_validator(mode="after")
    def _path_given(self) -> Self:
        if (self.path is None) != (self.kind == "train"):
            raise ValueError(f"tokenizer: kind={self.kind} {'needs' if self.path is None else 'takes no'} path")
        return self


class DataConfig(Strict):
    """Training mixture, fixed validation sets, tokenizer."""

    train: list[SourceConfig] = Field(min_length=1)
    valid: dict[str, list[SourceConfig]] = Field(default_factory=dict, description="named validation sets, never mixed")
    tokenizer: TokenizerConfig = TokenizerConfig()
    cache: str = Field(default="~/.cache/hybridlm", description="folder for downloads and prepared shards")
    workers: int = Field(default=2, gt=0)


class ScheduleConfig(Strict):
    """Linear warm-up, then `wsd` (constant, then linear decay over the last `decay`) or `cosine` to `final` * lr."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = Field(default=0.05, ge=0, description="fraction of the steps below 1, else a number of steps")
    decay: float = Field(
        default=0.4, ge=0, description="wsd only: fraction of the steps below 1, else a number of steps"
    )
    final: float = Field(default=0.05, ge=0, le=1)


class OptimConfig(Strict):
    """AdamW. Weight decay applies to matrices only; see train/optim.py for the rule."""

    lr: float = Field(default=3e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, ge=0, description="global gradient norm; 0 switches clipping off")
    schedule: ScheduleConfig = ScheduleConfig()


class CheckpointConfig(Strict):
    """When training state is written and what is kept. Times are in optimizer steps; 0 means never."""

    every: int = Field(default=200, ge=0)
    keep_last: int = Field(default=2, gt=0)
    keep_every: int = Field(default=0, ge=0, description="checkpoints at multiples of this are never rotated away")


class TrainConfig(Strict):
    """The loop. A step consumes `batch` sequences of `model.context` tokens over all processes."""

    steps: int = Field(gt=0)
    batch: int = Field(default=8, gt=0, description="sequences per optimizer step, over all processes")
    micro_batch: int = Field(default=8, gt=0, description="sequences per forward and process")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    activation_checkpointing: bool = False
    compile: bool = False
    threads: int | None = Field(default=None, gt=0, description="CPU threads per process; default: torch's choice")
    log_every: int = Field(default=10, gt=0)
    valid_every: int = Field(default=0, ge=0, description="steps between validation losses; 0: only at the end")
    valid_batches: int | None = Field(
        default=None, gt=0, description="micro-batches per validation set; default: all of it"
    )
    checkpoint: CheckpointConfig = CheckpointConfig()
    out: str = Field(default="runs/{name}", description="run folder")


class Recipe(Strict):
    """Everything a run needs. `Recipe.load(path_or_name, overrides)` is the way in."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    description: str = ""
    seed: int = Field(default=0, ge=0)
    model: ModelConfig = ModelConfig(pattern=["attention"])
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    grid: GridConfig | None = Field(default=None, description="named variants of this recipe; see lm/grid.py")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.eval.every and self.train.zero_stage == 3:
            raise ValueError("eval.every: needs whole weights in one process; use train.zero_stage=2 or eval.every=0")
        return self

    @classmethod
    def load(cls, path_or_name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Self:
        """Read a recipe file or one of recipes/, follow `extends:`, apply `KEY=VALUE` overrides, validate.

        Raises ConfigError with one line per problem: unknown keys name the nearest key.
        """
        tree, where = load_tree(path_or_name, overrides)
        return cls.parse(tree, where=where)

    def variants(self) -> dict[str, Variant]:
        """The grid's variants by name; none without a grid."""
        return self.grid.variants(self.name) if self.grid else {}

    def variant(self, name: str) -> Variant:
        """One of the grid's variants. Raises ConfigError that names the nearest."""
        found = self.variants()
        if not found:
            raise ConfigError(f"variant {name!r}: recipe {self.name} has no grid section; leave --variant out")
        if name not in found:
            raise ConfigError(f"variant {name!r}: not in the grid of {self.name}; {nearest(name, found)}")
        return found[name]

    def run_folder(self) -> Path:
        """Where this recipe's run lives."""
        return Path(self.train.out.format(name=self.name)).expanduser()

    def to_yaml(self) -> str:
        """The merged recipe, as written into the run folder; `Recipe.load` reads it back unchanged."""
        return yaml.safe_dump(_written(self), sort_keys=False, allow_unicode=True)


def _written(value: Any) -> Any:
    """A configuration as plain YAML values. None is left out only where it is the default: `rope: null` has to stay."""
    if isinstance(value, Strict):
        fields = type(value).model_fields
        given = {name: getattr(value, name) for name in fields}
        return {name: _written(x) for name, x in given.items() if x is not None or fields[name].default is not None}
    if isinstance(value, dict):
        return {key: _written(x) for key, x in value.items()}
    return [_written(x) for x in value] if isinstance(value, list | tuple) else value


def find_recipe(path_or_name: str | Path) -> Path:
    """A path as given, or `NAME` / `FOLDER/NAME` below recipes/, with or without .yaml."""
    path = Path(path_or_name).expanduser()
    for candidate in (path, RECIPES / path, RECIPES / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    names = [str(p.relative_to(RECIPES).with_suffix("")) for p in sorted(RECIPES.rglob("*.yaml"))]
    raise ConfigError(
        f"recipe {str(path_or_name)!r}: no such file and no recipe of that name; {nearest(str(path), names)}"
    )


def load_tree(path_or_name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """A recipe of any kind before it is validated, `extends:` followed and overrides applied, and its file's name."""
    path = find_recipe(path_or_name)
    tree = _read(path, seen=())
    tree.setdefault("name", path.stem)
    for override in overrides:
        _apply(tree, override)
    return tree, path.name


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path.name}: extends itself through {' -> '.join(p.name for p in seen)}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}: a recipe is a mapping of sections, got {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    beside = path.parent / f"{parent}.yaml"
    base = _read(beside if beside.is_file() else find_recipe(parent), (*seen, path.resolve()))
    base.pop("name", None)
    return _merge(base, tree)


LAYER_KEYS = ("pattern", "ratio", "layers")


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mappings key by key; a spelling of the layers in `top` replaces that of `base`."""
    merged = dict(base)
    if any(key in top for key in LAYER_KEYS):
        merged = {key: value for key, value in merged.items() if key not in LAYER_KEYS}
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted KEY=VALUE; VALUE is YAML: train.steps=9, model.ratio={gated_deltanet: 3, attention: 1}."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected KEY=VALUE, e.g. train.steps=100")
    *parents, last = key.strip().split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not valid YAML; quote it") from None
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
    if last in LAYER_KEYS:
        for other in LAYER_KEYS:
            node.pop(other, None)
    node[last] = value
