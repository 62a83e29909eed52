"""The recipe of a synthetic task: slices to train and test on, one model, one optimizer, and a grid of both.

    train: [{task: mqar, length: 64, n_pairs: 16, vocab_size: 512, examples: 20000}]
    test: [{task: mqar, length: 64, n_pairs: 16, vocab_size: 512, examples: 1000}]
    model: {d_model: 64, n_layers: 2, pattern: [gated_conv, attention], ffn: null}
    optim: {epochs: 4, batch: 64}
    grid:
      learning_rates: [1.0e-3, 3.0e-3]
      seeds: [0, 1, 2]
      mixers:
        attention: {pattern: [gated_conv, attention]}
        gla: {pattern: [gated_conv, gla], sizes: {k8: [model.gla.head_dim=8], k16: [model.gla.head_dim=16]}}

`extends:`, overrides and the `model` section are those of pretraining recipes; vocabulary and context follow from the
tasks.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, InstanceOf, model_validator

from ...lm.parts.errors import ConfigError, brief
from ...lm.parts.ranges import MOST, WIDEST, Beta, LearningRate, Name, Seed, Share
from ...lm.parts.strict import Strict, nearest
from ...lm.recipe.files import load_tree
from ...lm.recipe.grid import Variant
from ...lm.recipe.layers import Layer
from ...lm.recipe.model import BaseModelConfig, ModelConfig
from . import parse
from .task import Task, segment_seeds

SPLITS = ("train", "test")
Batch = Annotated[int, Field(gt=0, le=MOST)]


class Slice(Strict):
    """One configured task and how many examples of it; written flat, {task: NAME, examples: N, OPTION: VALUE ...}."""

    task: InstanceOf[Task]
    examples: int = Field(gt=0, le=MOST)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        if not isinstance(given, dict) or isinstance(given.get("task"), Task):
            return given
        options = dict(given)
        examples = options.pop("examples", None)
        if examples is None:
            raise ValueError(f"examples: missing in {brief(given)}; give their number, e.g. examples: 1000")
        return {"task": parse(options), "examples": examples}


class TrainerConfig(Strict):
    """AdamW and one of two ways to train.

    as_published: Zoology's. Batches in the order in which they are written, the same in every epoch; the learning rate
    falls along a cosine, stepped after each epoch, to 0; no warm-up, no clipping; every parameter decays.
    corrected: batches and their examples shuffled anew in every epoch, 10 % warm-up and a cosine to 0 stepped at every
    update, clipping, and decay of matrices alone.
    In both no batch mixes slices, and training ends early when mean test accuracy exceeds `stop_at`: looked at after
    each epoch as published, and corrected every `eval_every` steps, once the probe has got there.
    """

    schedule: Literal["corrected", "as_published"] = "corrected"
    lr: LearningRate = 3e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(
        default=1.0, ge=0, le=1e6, description="corrected only: global gradient norm; 0 switches clipping off"
    )
    epochs: int = Field(default=4, gt=0, le=MOST)
    batch: Batch | list[Batch] = Field(
        default=64, description="examples per step; a list has one number per train slice"
    )
    test_batch: int = Field(default=128, gt=0, le=MOST)
    stop_at: float = Field(
        default=0.99, gt=0, le=2, description="mean test accuracy; above 1 training never ends early"
    )
    eval_every: int = Field(default=50, gt=0, le=MOST, description="steps between looks at the probe")
    probe: int = Field(
        default=50, gt=0, le=MOST, description="examples per test slice, its first ones, for steps to 99 %"
    )


class CurveConfig(Strict):
    """One curve of the plot: layers, further overrides, and its sizes, each a name and overrides of its own."""

    pattern: list[Layer] | None = None
    ratio: dict[str, Share] | None = None
    overrides: list[str] = Field(default_factory=list)
    sizes: dict[str, list[str]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _layers_given(self) -> Self:
        if (self.pattern is None) == (self.ratio is None):
            raise ValueError("pattern, ratio: give exactly one of them, as in the model section")
        return self

    def variants(self, curve: str, width: int) -> list[Variant]:
        """Named curve-dWIDTH[-SIZE]; `3:1` is written 3to1."""
        name = f"{curve.replace(':', 'to').replace(' ', '-')}-d{width}"
        layers = f"pattern={json.dumps(self.pattern)}" if self.pattern else f"ratio={json.dumps(self.ratio)}"
        common = [f"model.{layers}", f"model.d_model={width}", *self.overrides]
        sizes = {f"-{size}": own for size, own in self.sizes.items()} or {"": []}
        return [Variant(name + size, [*common, *own], curve) for size, own in sizes.items()]


class SweepConfig(Strict):
    """Curves x widths x learning rates x seeds; see the module.

    With `settings`, named lists of overrides, all that once in each: such as several pairs of train and test slices, on
    each of which models are trained by themselves.
    """

    mixers: dict[str, CurveConfig] = Field(min_length=1)
    settings: dict[str, list[str]] = Field(default_factory=dict)
    widths: list[Annotated[int, Field(gt=0, le=WIDEST)]] = Field(
        default_factory=list, description="d_model; default: that of the model section"
    )
    learning_rates: list[LearningRate] = Field(default_factory=list, description="default: optim.lr")
    seeds: list[Seed] = Field(default_factory=list, description="default: seed")

    def variants(self, width: int) -> Iterator[Variant]:
        """Every curve at every width and size; `width` is the model's own."""
        for name, curve in self.mixers.items():
            for variant in (v for w in self.widths or [width] for v in curve.variants(name, w)):
                if not self.settings:
                    yield variant
                for setting, own in self.settings.items():
                    yield Variant(f"{variant.name}-{setting}", [*variant.overrides, *own], f"{name} {setting}")


class Bound(Strict):
    """What the mean accuracy over seeds at the best learning rate has to reach, or must not."""

    at_least: float | None = Field(default=None, ge=0, le=1e6)
    at_most: float | None = Field(default=None, ge=0, le=1e6)

    def broken_by(self, accuracy: float) -> str | None:
        """What is wrong, or None."""
        if self.at_least is not None and accuracy < self.at_least:
            return f"{accuracy:.3f} is below {self.at_least:g}"
        if self.at_most is not None and accuracy > self.at_most:
            return f"{accuracy:.3f} is above {self.at_most:g}"
        return None


class Point(NamedTuple):
    """One run of a sweep: a variant at a learning rate and a seed."""

    variant: Variant
    lr: float
    seed: int

    @property
    def label(self) -> str:
        return f"{self.variant.name} lr {self.lr:g} seed {self.seed}"


class SyntheticRecipe(Strict):
    """Everything that a run on synthetic tasks needs. `SyntheticRecipe.load(path_or_name, overrides)` is the way in."""

    name: Name
    description: str = ""
    seed: Seed = Field(default=0, description="of the weights and the order of the batches")
    data_seed: Seed = Field(default=0, description="of the examples")
    train: list[Slice] = Field(min_length=1)
    test: list[Slice] = Field(min_length=1)
    model: ModelConfig = ModelConfig(pattern=["attention"])
    optim: TrainerConfig = TrainerConfig()
    grid: SweepConfig | None = None
    expect: dict[str, Bound] = Field(
        default_factory=dict, description="bounds by variant; a sweep that breaks one fails"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for key in ("vocab_size", "context"):
            if key in self.model.model_fields_set:
                raise ValueError(f"model.{key}: follows from the tasks; leave it out")
        widths = {task.input_dim for task in self.tasks()}
        if len(widths) > 1:
            raise ValueError(f"train, test: one model cannot read inputs of widths {widths}; null are tokens")
        batch = self.optim.batch
        if isinstance(batch, list) and len(batch) != len(self.train):
            raise ValueError(f"optim.batch: lists {len(batch)} sizes for {len(self.train)} train slices")
        unknown = self.expect.keys() - self.variants().keys()
        if unknown:
            raise ValueError(f"expect: {min(unknown)!r} is no variant; {nearest(min(unknown), self.variants())}")
        return self

    @classmethod
    def load(cls, path_or_name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Self:
        """Read a recipe file or one of recipes/, as `Recipe.load` does. Raises ConfigError, a line per problem."""
        tree, where = load_tree(path_or_name, overrides)
        if not tree.keys() & set(SPLITS) or "data" in tree:
            raise ConfigError(f"{where}: no recipe of synthetic tasks, it lists no train and test slices")
        return cls.parse(tree, where=where)

    def tasks(self) -> list[Task]:
        """Those of all slices."""
        return [part.task for part in (*self.train, *self.test)]

    def model_config_for_tasks(self) -> BaseModelConfig:
        """The `model` section with the vocabulary and the context that the tasks ask for."""
        tasks = self.tasks()
        sizes = {"vocab_size": max(2, *(t.vocab_size for t in tasks)), "context": max(t.length for t in tasks)}
        return self.model.model_copy(update=sizes)

    def slice_seed(self, split: str, index: int) -> int:
        """A seed below 2^31 for every train slice and from there to 2^32 for every test slice: never shared."""
        return segment_seeds(self.data_seed, index + 1, index + 1)[SPLITS.index(split)][index]

    def variants(self) -> dict[str, Variant]:
        """The grid's variants by name; without a grid one, of the recipe's own name."""
        if self.grid is None:
            return {self.name: Variant(self.name, [], self.name)}
        return {variant.name: variant for variant in self.grid.variants(self.model.d_model)}

    def points(self) -> list[Point]:
        """Every run of the sweep; all variants at one seed before the next seed, so that a part says something."""
        rates, seeds = [self.optim.lr], [self.seed]
        if self.grid is not None:
            rates, seeds = self.grid.learning_rates or rates, self.grid.seeds or seeds
        return [Point(variant, lr, seed) for seed in seeds for variant in self.variants().values() for lr in rates]

    def fingerprint(self) -> str:
        """12 hex digits of what a single run depends on, as it is written; what is left out counts as left out."""
        written = self.model_dump(exclude_unset=True, include={"seed", "data_seed", "model", "optim"})
        slices = [[[*s.task.identity(), s.examples] for s in part] for part in (self.train, self.test)]
        text = json.dumps([written, slices], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_point(name: str | Path, overrides: list[str], point: Point) -> SyntheticRecipe:
    """The recipe of one run: the variant's overrides, then those given, then its learning rate and seed."""
    own = [f"optim.lr={point.lr!r}", f"seed={point.seed}"]
    return SyntheticRecipe.load(name, [*point.variant.overrides, *overrides, *own])
