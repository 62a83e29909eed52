import io
import re

import pytest
import yaml
from rich.console import Console

from hybridlm.eval.synthetic.recipe import SyntheticRecipe, load_point
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.files import RECIPES
from hybridlm.tests.eval.synthetic.toy import recipe
from hybridlm.tools.recipes import list_recipes, show_recipe

GRID = {
    "learning_rates": [0.01, 0.03],
    "seeds": [0, 1],
    "widths": [16, 32],
    "mixers": {
        "attention": {"pattern": ["attention"]},
        "hybrid 3:1": {
            "pattern": ["gla", "gla", "gla", "attention"],
            "overrides": ["model.n_layers=4"],
            "sizes": {"k4": ["model.gla.head_dim=4"], "k8": ["model.gla.head_dim=8"]},
        },
    },
}


def write(tmp_path, tree, name="toy"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_model_takes_vocabulary_and_context_from_the_tasks():
    config = SyntheticRecipe.parse(recipe()).model_config_for_tasks()
    assert (config.vocab_size, config.context) == (12, 15)


def test_variants_are_curves_by_widths_by_sizes(tmp_path):
    loaded = SyntheticRecipe.load(write(tmp_path, recipe(grid=GRID)))
    variants = loaded.variants()
    assert list(variants) == [
        "attention-d16",
        "attention-d32",
        "hybrid-3to1-d16-k4",
        "hybrid-3to1-d16-k8",
        "hybrid-3to1-d32-k4",
        "hybrid-3to1-d32-k8",
    ]
    assert variants["hybrid-3to1-d16-k8"].mixer == "hybrid 3:1"
    assert len(loaded.points()) == 6 * 2 * 2
    assert {point.seed for point in loaded.points()[:12]} == {0}  # one seed of everything comes first


def test_settings_repeat_every_variant(tmp_path):
    settings = {"short": ["optim.epochs=1"], "long": ["optim.epochs=2"]}
    path = write(tmp_path, recipe(grid={"mixers": {"gla": {"pattern": ["gla"]}}, "settings": settings}))
    variants = SyntheticRecipe.load(path).variants()
    assert {name: v.mixer for name, v in variants.items()} == {"gla-d16-short": "gla short", "gla-d16-long": "gla long"}
    points = SyntheticRecipe.load(path).points()
    epochs = {point.variant.name: load_point(path, [], point).optim.epochs for point in points}
    assert epochs == {"gla-d16-short": 1, "gla-d16-long": 2}


def test_a_point_is_its_variant_rate_and_seed_with_overrides_on_top(tmp_path):
    path = write(tmp_path, recipe(grid=GRID))
    point = next(
        p for p in SyntheticRecipe.load(path).points() if p.variant.name == "hybrid-3to1-d32-k8" and p.seed == 1
    )
    found = load_point(path, ["model.gla.head_dim=2"], point)
    assert (found.optim.lr, found.seed) == (point.lr, 1)
    assert [spec.mixer for spec in found.model.layer_specs()] == ["gla"] * 3 + ["attention"]
    assert found.model.d_model == 32
    assert found.model.mixer_options("gla").head_dim == 2


def test_extends_another_recipe(tmp_path):
    write(tmp_path, recipe(), "base")
    child = SyntheticRecipe.load(write(tmp_path, {"extends": "base", "optim": {"epochs": 7}}, "child"))
    assert (child.name, child.optim.epochs, child.optim.batch) == ("child", 7, 16)


def test_slice_seeds_never_meet():
    seeds = {}
    for data_seed in range(20):
        loaded = SyntheticRecipe.parse(recipe(data_seed=data_seed))
        for split in ("train", "test"):
            for i in range(8):
                seeds[split, data_seed, i] = loaded.slice_seed(split, i)
    assert len(set(seeds.values())) == len(seeds)
    assert all((seed < 2**31) == (split == "train") and 0 <= seed < 2**32 for (split, *_), seed in seeds.items())


def test_fingerprint_is_of_what_a_run_depends_on():
    base = SyntheticRecipe.parse(recipe()).fingerprint()
    assert SyntheticRecipe.parse(recipe(name="other", description="words", grid=GRID)).fingerprint() == base
    changed = [{"seed": 1}, {"data_seed": 1}, {"optim": {"lr": 0.1}}, {"model": {"d_model": 8}}]
    changed.append({"test": recipe()["test"][:1]})
    assert len({SyntheticRecipe.parse(recipe(**change)).fingerprint() for change in changed} | {base}) == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"vocab_size": 99}}, r"model.vocab_size: follows from the tasks"),
        ({"model": {"context": 99}}, r"model.context: follows from the tasks"),
        ({"train": [{"task": "toy_sucessor", "examples": 1}]}, r"did you mean 'toy_successor'"),
        ({"train": [{"task": "toy_successor"}]}, r"examples: missing"),
        ({"train": [{"task": "toy_successor", "examples": 0}]}, r"examples"),
        ({"train": [{"task": "toy_successor", "examples": 9, "lenght": 3}]}, r"did you mean 'length'"),
        ({"train": []}, r"train"),
        ({"train": [{"task": "toy_total", "examples": 9}]}, r"cannot read inputs of widths"),
        ({"optim": {"batch": [4]}}, r"lists 1 sizes for 2 train slices"),
        ({"optim": {"batch": [4, 0]}}, r"optim.batch.1: Input should be greater than 0, got 0"),
        ({"optim": {"epoch": 3}}, r"did you mean 'epochs'"),
        ({"optim": {"schedule": "wsd"}}, r"optim.schedule"),
        ({"expect": {"tay": {"at_least": 0.9}}}, r"'tay' is no variant; did you mean 'toy'"),
        ({"grid": {"mixers": {"gla": {"patern": ["gla"]}}}}, r"did you mean 'pattern'"),
    ],
)
def test_bad_recipes_are_told_what_to_change(change, says):
    with pytest.raises(ConfigError, match=says):
        SyntheticRecipe.parse(recipe(**change))


def test_a_pretraining_recipe_is_none():
    with pytest.raises(ConfigError, match=r"demo.yaml: no recipe of synthetic tasks"):
        SyntheticRecipe.load("demo")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("mqar/*.yaml")), ids=lambda path: path.stem)
def test_every_point_of_the_shipped_recipes_is_a_model(path):
    loaded = SyntheticRecipe.load(path)
    assert loaded.description
    points = {point.variant.name: point for point in loaded.points()}
    for point in points.values():
        load_point(path, [], point).model_config_for_tasks().layer_specs()


def test_recipes_are_listed_with_their_sizes():
    console = Console(file=io.StringIO(), width=200)
    list_recipes(console)
    assert "mqar/t1-smoke" in console.file.getvalue()
    show_recipe("mqar/ratio-mini", "*3to1*", False, console)
    assert re.search(r"hybrid-3to1-d32 +1 \+ 18 \+ 6 ", console.file.getvalue())
