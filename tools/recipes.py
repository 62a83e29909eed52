"""The recipes that come with the package, with what each would build."""

import torch
from rich.console import Console
from rich.table import Table

from ..lm.config import RECIPES, Recipe
from ..lm.model import HybridLM
from ..lm.model.layout import describe


def list_recipes(console: Console) -> None:
    """One row per file below recipes/."""
    table = Table(title="recipes", title_justify="left")
    for column in ("recipe", "layers", "parameters", "tokens", "training FLOPs", "description"):
        table.add_column(column, justify="right" if column in ("parameters", "tokens", "training FLOPs") else "left")
    for path in sorted(RECIPES.rglob("*.yaml")):
        recipe = Recipe.load(path)
        with torch.device("meta"):
            model = HybridLM(recipe.model)
        tokens = recipe.train.steps * recipe.train.batch * recipe.model.context
        table.add_row(
            str(path.relative_to(RECIPES).with_suffix("")),
            describe(recipe.model.layer_specs()),
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
            f"{tokens / 1e6:.1f} M",
            f"{3 * model.flops_per_token(recipe.model.context) * tokens:.1e}",
            recipe.description,
        )
    console.print(table)
