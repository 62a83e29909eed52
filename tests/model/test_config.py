"""Recipes: files, `extends`, overrides, errors in one line each, and the way back to YAML."""

from pathlib import Path

import pytest

from hybridlm.lm import Recipe
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.files import RECIPES
from hybridlm.tools.recipes import load

BASE = """
name: base
model: {vocab_size: 300, d_model: 32, n_layers: 4, ratio: {gated_deltanet: 3, attention: 1}}
data: {train: [{name: sotu}]}
train: {steps: 5}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def beside(base: Path, text: str, name: str = "child") -> Path:
    path = base.with_name(f"{name}.yaml")
    path.write_text(text)
    return path


def error_of(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        Recipe.load(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_by_name_and_is_short(path):
    recipe = load(str(path.relative_to(RECIPES).with_suffix("")))
    assert recipe.description
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.parametrize("name", MIXERS)
def test_demo_becomes_a_small_model_of_any_mixer(name):
    sizes = ["model.n_layers=2", "model.d_model=64", "model.vocab_size=97"]
    model = Recipe.load("demo", overrides=[*sizes, f"model.pattern=[{name}]"]).model
    assert [spec.mixer for spec in model.layer_specs()] == [name, name]
    assert (model.d_model, model.vocab_size, model.ratio) == (64, 97, None)


def test_overrides_are_yaml_and_come_last(base):
    overrides = ["optim.lr=1e-3", "model.attention={n_heads: 2}", "optim.betas=[0.9, 0.99]", "train.compile=true"]
    recipe = Recipe.load(base, [*overrides, "train.steps=7", "train.steps=8"])
    assert recipe.optim.lr == 1e-3
    assert recipe.optim.betas == (0.9, 0.99)
    assert recipe.train.steps == 8 and recipe.train.compile
    assert recipe.model.mixer_options("attention").n_heads == 2


def test_one_spelling_of_the_layers_replaces_another(base):
    assert Recipe.load(base, ["model.pattern=[attention]"]).model.ratio is None
    child = beside(base, "extends: base\nmodel: {layers: [attention, attention, attention, attention]}")
    recipe = Recipe.load(child)
    assert recipe.model.ratio is None and recipe.model.layers == ["attention"] * 4
    child = beside(base, "extends: base\nmodel: {ratio: {attention: 1}}")
    assert Recipe.load(child).model.ratio == {"attention": 1}


def test_extends_merges_section_by_section(base):
    beside(base, "extends: base\ndescription: a child\nmodel: {d_model: 64}\ntrain: {batch: 2}")
    grandchild = beside(base, "extends: child\ntrain: {steps: 9}", "grandchild")
    recipe = Recipe.load(grandchild)
    assert (recipe.name, recipe.description) == ("grandchild", "a child")
    assert (recipe.model.d_model, recipe.model.vocab_size) == (64, 300)
    assert (recipe.train.steps, recipe.train.batch) == (9, 2)


def test_extends_in_a_circle(base):
    beside(base, "extends: two", "one")
    assert error_of(beside(base, "extends: one", "two")) == "two.yaml: extends itself through two.yaml -> one.yaml"


def test_yaml_round_trip(base, tmp_path):
    overrides = ["model.attention.rope={theta: 50000.0}", "optim.schedule.kind=cosine", "model.logit_softcap=30"]
    recipe = Recipe.load(base, overrides)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert Recipe.load(again) == recipe


def test_yaml_round_trip_keeps_an_option_that_is_switched_off(base, tmp_path):
    recipe = Recipe.load(base, ["model.attention.rope=null"])
    assert recipe.model.mixer_options("attention").rope is None
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert Recipe.load(again).model.mixer_options("attention").rope is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "base.yaml: train.stepz: unknown key 'stepz' in train; did you mean 'steps'?"),
        ("modle.d_model=3", "base.yaml: modle: unknown key 'modle' in the recipe; did you mean 'model'?"),
        (
            "model.attention.n_head=3",
            "base.yaml: model.attention.n_head: unknown key 'n_head' in model.attention; did you mean 'n_heads'?",
        ),
        (
            "model.attention.rope.thta=3",
            "base.yaml: model.attention.rope.thta: unknown key 'thta' in model.attention.rope; did you mean 'theta'?",
        ),
        ("train.steps=0", "base.yaml: train.steps: Input should be greater than 0, got 0"),
        (
            "train.precision=fp8",
            "base.yaml: train.precision: Input should be 'fp32' or 'bf16', got 'fp8'",
        ),
        ("train.steps", "override 'train.steps': expected KEY=VALUE, e.g. train.steps=100"),
        ("model.d_model.x=3", "override 'model.d_model.x=3': 'd_model' is a value, not a section"),
        ("train.steps=[1", "override 'train.steps=[1': '[1' is not valid YAML; quote it"),
    ],
)
def test_errors_in_one_line(base, override, message):
    assert error_of(base, override) == message


def test_unknown_recipe_names_the_nearest():
    message = error_of("demmo")
    assert message == "recipe 'demmo': no such file and no recipe of that name; did you mean 'demo'?"


def test_every_problem_is_reported_at_once(base):
    lines = error_of(base, "train.stepz=3", "optim.lr=-1").splitlines()
    assert lines == [
        "base.yaml: optim.lr: Input should be greater than 0, got -1",
        "base.yaml: train.stepz: unknown key 'stepz' in train; did you mean 'steps'?",
    ]


def test_a_list_is_no_recipe(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1")
    assert error_of(path) == "list.yaml: a recipe is a mapping of sections, got list"
    path.write_text("a: [1")
    assert error_of(path).startswith("list.yaml: not valid YAML: ")
