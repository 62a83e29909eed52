"""recipes/probes: each loads, and every variant's model answers where its tasks ask."""

import pytest
import torch

from hybridlm.eval.synthetic.recipe import SyntheticRecipe, load_point
from hybridlm.eval.synthetic.train import build
from hybridlm.lm.recipe.files import RECIPES

NAMES = sorted(f"probes/{path.stem}" for path in (RECIPES / "probes").glob("*.yaml"))


def test_every_probe_has_a_recipe():
    kinds = {part.task.kind for name in NAMES for part in SyntheticRecipe.load(name).test}
    assert kinds >= {"parity", "group", "copy", "regression", "mad_recall", "mad_compression"}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_builds_models_that_answer(name):
    recipe = SyntheticRecipe.load(name)
    for point in {point.variant.name: point for point in recipe.points()}.values():
        one = load_point(name, [], point)
        model = build(one)
        for part in (*one.train, *one.test):
            examples = part.task.sample(2, 0)
            with torch.no_grad():
                outputs = model.answers(examples.inputs, examples.labelled)
            scores = part.task.scores(outputs, examples)
            assert all(values.shape == (2,) and bool(values.isfinite().all()) for values in scores.values())
