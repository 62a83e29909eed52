"""The recipes that come with the package, with what each would build, and the variants of one side by side."""

from fnmatch import fnmatch
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..eval.console import binary, markdown_table, plain_table, si
from ..eval.synthetic.recipe import SyntheticRecipe
from ..lm.parts.errors import ConfigError
from ..lm.parts.strict import nearest
from ..lm.recipe.files import RECIPES, load_tree
from ..lm.recipe.grid import Variant
from ..lm.recipe.layers import describe
from ..lm.recipe.recipe import Recipe
from .summary import Size, size_of, size_of_model

HEADER = ("variant", "layers", "parameters", "non-emb.", "state", "per token", "FLOPs/token", "tokens")
NOTES = (
    "layers: linear + full. non-emb.: without embedding and head. state: bytes per sequence that do not grow; "
    "per token: what every token adds (KV); in {precision}, recurrences in float32. "
    "FLOPs/token: forward matmuls in a sequence of {context} tokens."
)


def list_recipes(console: Console) -> None:
    """One row per file below recipes/."""
    numbers = ("parameters", "tokens", "training FLOPs")
    table = Table(title="recipes", title_justify="left")
    for column in ("recipe", *numbers, "description and layers"):
        table.add_column(column, justify="right" if column in numbers else "left")
    for path in sorted(RECIPES.rglob("*.yaml")):
        recipe = load(path)
        size = size_of(recipe) if isinstance(recipe, Recipe) else synthetic_size(recipe)
        name = str(path.relative_to(RECIPES).with_suffix(""))
        flops = 3 * size.flops_per_token * size.tokens
        what = Text(recipe.description).append(f"\n{describe(recipe.model.layer_specs())}", "dim")
        if recipe.grid:
            what.append(f"\n{len(recipe.variants())} variants: hybridlm recipes {name}", "dim")
        table.add_row(name, si(size.parameters), si(size.tokens), f"{flops:.1e}", what)
    console.print(table)


def load(path_or_name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe | SyntheticRecipe:
    """A recipe of either kind: of pretraining if it says on what data, else of synthetic tasks."""
    tree, _ = load_tree(path_or_name)
    kind = Recipe if "data" in tree else SyntheticRecipe
    return kind.load(path_or_name, overrides)


def synthetic_size(recipe: SyntheticRecipe) -> Size:
    """The size of a recipe's model for its tasks; tokens are those of all epochs."""
    config = recipe.model_config_for_tasks()
    tokens = recipe.optim.epochs * sum(part.examples * part.task.length for part in recipe.train)
    return size_of_model(config, torch.float32, tokens)


def show_recipe(name: str, only: str | None, markdown: bool, console: Console) -> None:
    """The variants of a grid recipe side by side, or the one line of a recipe without a grid.

    A comparison of mixers is one of parameter counts and state sizes too; here they are before anything is trained.
    """
    recipe = load(name)
    variants = select(recipe, only) if recipe.grid else [Variant(recipe.name, [])]
    if isinstance(recipe, Recipe):
        sizes = [size_of(Recipe.load(name, v.overrides)) for v in variants]
        notes = NOTES.format(precision=recipe.train.precision, context=recipe.model.context)
    else:
        sizes = [synthetic_size(SyntheticRecipe.load(name, v.overrides)) for v in variants]
        notes = NOTES.format(precision="fp32", context=recipe.model_config_for_tasks().context)
    rows = [(v.name, *size_cells(size)) for v, size in zip(variants, sizes, strict=True)]
    if markdown:
        console.out(markdown_table(HEADER, rows) + f"\n{notes}", highlight=False)
    else:
        console.print(plain_table(f"{name}: {recipe.description}", HEADER, rows))
        console.print(notes, highlight=False)


def select(recipe: Recipe | SyntheticRecipe, only: str | None) -> list[Variant]:
    """The variants of a grid recipe whose names match the glob `only`, all without one."""
    found = recipe.variants()
    if not found:
        raise ConfigError(f"recipe {recipe.name}: has no grid section; train it by itself, or add a grid")
    chosen = [variant for name, variant in found.items() if fnmatch(name, only or "*")]
    if not chosen:
        raise ConfigError(f"--only {only!r}: matches no variant of {recipe.name}; {nearest(str(only), found)}")
    return chosen


def size_cells(size: Size) -> tuple[str, ...]:
    """One row of the side-by-side table, after the name."""
    return (
        " + ".join(str(n) for n in size.layers.values()),
        si(size.parameters),
        si(size.non_embedding),
        binary(size.state),
        binary(size.state_per_token),
        si(size.flops_per_token),
        si(size.tokens),
    )
