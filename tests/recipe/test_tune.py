"""Sections by which a recipe tunes what another run left: their short forms, their written forms, their mistakes."""

from pathlib import Path

import pytest

from hybridlm.lm.hf.heads import without_heads
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.recipe import Recipe

SECTIONS = (
    "init={run: runs/a, missing: ['*.router*']}",
    "distill={teacher: runs/b, hidden: 1, layers: all}",
    "freeze=[{match: [embed*], until: 0.5}, {match: [norm.weight]}]",
)


def test_a_written_recipe_is_read_back_with_its_tuning(tmp_path: Path):
    recipe = Recipe.load("demo", SECTIONS)
    (tmp_path / "demo.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "demo.yaml") == recipe
    assert recipe.init and recipe.init.missing == ["*.router*"]
    assert recipe.distill and (recipe.distill.weight, recipe.distill.temperature) == (0.5, 1.0)
    assert [(rule.match, rule.until) for rule in recipe.freeze] == [(["embed*"], 0.5), (["norm.weight"], None)]


def test_a_recipe_of_before_begins_from_nothing_and_trains_everything():
    recipe = Recipe.load("demo")
    assert (recipe.init, recipe.distill, recipe.freeze) == (None, None, [])


def test_the_second_stage_differs_from_the_first_by_its_heads_and_what_it_begins_with():
    data, route = Recipe.load("moh/smollm2-data"), Recipe.load("moh/smollm2-route")
    assert data.init and route.init and data.init.run != route.init.run
    assert (data.data, data.optim, data.train.steps) == (route.data, route.optim, route.train.steps)
    assert without_heads(route.model).layer_specs() == data.model.layer_specs()
    heads = route.model.layer_specs()[0].options.heads
    assert (heads.shared, heads.active, heads.shared_heads) == (3, 7, [6, 7, 8])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("init=''", r"init\.run: an empty path; give a file or a folder"),
        ("init={missing: [a]}", r"init\.run: Field required"),
        ("init={run: a, mising: [b]}", r"init\.mising: unknown key 'mising' in init; did you mean 'missing'\?"),
        ("distill={teacher: a, weight: true}", r"distill\.weight: a number is wanted, got true"),
        ("distill={teacher: a, weight: 0}", r"distill: nothing is learned of the teacher; give weight or hidden, or"),
        (
            "distill={teacher: a, temperature: 0}",
            r"distill\.temperature: Input should be greater than or equal to 0\.05",
        ),
        ("freeze=[{match: []}]", r"freeze\.0\.match: List should have at least 1 item"),
        (
            "freeze=[{match: [a], untill: 3}]",
            r"freeze\.0\.untill: unknown key 'untill' in freeze\.0; did you mean 'until'\?",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(override, says):
    with pytest.raises(ConfigError, match=says) as error:
        Recipe.load("demo", [override])
    assert "\n" not in str(error.value)
