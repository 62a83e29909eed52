"""The recipe: one strict tree that says which model is trained on which data, how, and how it is scored.

A recipe is a YAML file. `extends: NAME` starts from another recipe; `KEY=VALUE` overrides with dotted keys come last.
"""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ..parts.errors import ConfigError, brief
from ..parts.ranges import Name, Seed
from ..parts.strict import Strict, nearest
from .data import DataConfig
from .eval import EvalConfig
from .files import load_tree
from .grid import GridConfig, Variant
from .model import ModelConfig
from .train import OptimConfig, TrainConfig
from .tune import DistillConfig, FreezeRule, InitConfig
from .yaml_text import write_yaml


class Recipe(Strict):
    """Everything a run needs. `Recipe.load(path_or_name, overrides)` is the way in."""

    name: Name
    description: str = ""
    seed: Seed = 0
    model: ModelConfig = ModelConfig(pattern=["attention"])
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    init: InitConfig | None = None
    distill: DistillConfig | None = None
    freeze: list[FreezeRule] = Field(default_factory=list)
    eval: EvalConfig = EvalConfig()
    grid: GridConfig | None = Field(default=None, description="named variants of this recipe; see lm/recipe/grid.py")

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
            raise ConfigError(f"variant {brief(name)}: recipe {self.name} has no grid section; leave --variant out")
        if name not in found:
            raise ConfigError(f"variant {brief(name)}: not in the grid of {self.name}; {nearest(name, found)}")
        return found[name]

    def run_folder(self) -> Path:
        """Where this recipe's run lives: train.out with the name in it; other braces stand for themselves."""
        return Path(os.path.expanduser(self.train.out.replace("{name}", self.name)))

    def to_yaml(self) -> str:
        """The merged recipe, as written into the run folder; `Recipe.load` reads it back unchanged."""
        return write_yaml(_written(self))


def _written(value: Any) -> Any:
    """A configuration as plain YAML values. None is left out only where it is the default: `rope: null` has to stay."""
    if isinstance(value, Strict):
        fields = type(value).model_fields
        given = {name: getattr(value, name) for name in fields}
        return {name: _written(x) for name, x in given.items() if x is not None or fields[name].default is not None}
    if isinstance(value, dict):
        return {key: _written(x) for key, x in value.items()}
    return [_written(x) for x in value] if isinstance(value, list | tuple) else value
