"""The grid section of a recipe: names, the overrides they stand for, and `train --variant`."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.grid import GridConfig
from hybridlm.tools import cli

GRID = {
    "mixers": {"gla": [], "gated_deltanet": ["model.n_layers=2", "optim.lr=1e-3"]},
    "ratios": {"3to1": {"linear": 3, "attention": 1}, "pure": {"linear": 1}},
    "others": {"transformer": ["model.pattern=[attention]"]},
}


@pytest.fixture
def grid_recipe(tiny_recipe: Path) -> Path:
    """The tiny recipe with a grid of five variants."""
    tree = yaml.safe_load(tiny_recipe.read_text())
    tree["model"] |= {"n_layers": 4, "remainder": "cut"}
    tiny_recipe.write_text(yaml.safe_dump({**tree, "grid": GRID}, sort_keys=False))
    return tiny_recipe


def test_variants_are_what_would_be_typed():
    assert {name: v.overrides for name, v in GridConfig.parse(GRID).variants("r").items()} == {
        "gla-3to1": ["model.ratio={gla: 3, attention: 1}", "name=r-gla-3to1"],
        "gla-pure": ["model.ratio={gla: 1}", "name=r-gla-pure"],
        "gated_deltanet-3to1": [
            "model.n_layers=2",
            "optim.lr=1e-3",
            "model.ratio={gated_deltanet: 3, attention: 1}",
            "name=r-gated_deltanet-3to1",
        ],
        "gated_deltanet-pure": [
            "model.n_layers=2",
            "optim.lr=1e-3",
            "model.ratio={gated_deltanet: 1}",
            "name=r-gated_deltanet-pure",
        ],
        "transformer": ["model.pattern=[attention]", "name=r-transformer"],
    }


def test_a_variant_is_trained_under_its_own_name(grid_recipe):
    recipe = Recipe.load(grid_recipe)
    variant = recipe.variant("gated_deltanet-3to1")
    assert (variant.mixer, variant.ratio) == ("gated_deltanet", "3to1")
    chosen = Recipe.load(grid_recipe, variant.overrides)
    assert [spec.mixer for spec in chosen.model.layer_specs()] == ["gated_deltanet", "attention"]
    assert (chosen.name, chosen.optim.lr) == ("tiny-gated_deltanet-3to1", 1e-3)
    assert chosen.run_folder() != recipe.run_folder()


def test_every_seed_is_a_variant_and_the_others_may_be_all():
    variants = GridConfig.parse({"others": {"half": ["model.d_model=64"], "whole": []}, "seeds": [0, 7]}).variants("r")
    assert list(variants) == ["half-s0", "half-s7", "whole-s0", "whole-s7"]
    assert variants["half-s7"].overrides == ["model.d_model=64", "seed=7", "name=r-half-s7"]
    assert {variant.of for variant in variants.values()} == {"half", "whole"}
    assert GridConfig.parse({**GRID, "seeds": [3]}).variants("r")["gla-3to1-s3"].of == "gla-3to1"


def test_train_prints_the_overrides_and_takes_more(grid_recipe):
    arguments = ["train", str(grid_recipe), "--variant", "gla-3to1", "--dry-run", "model.d_model=64"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    first = "variant gla-3to1: 'model.ratio={gla: 3, attention: 1}' name=tiny-gla-3to1"
    assert result.output.splitlines()[0] == first
    typed = ["train", str(grid_recipe), "--dry-run", "model.ratio={gla: 3, attention: 1}", "name=tiny-gla-3to1"]
    again = CliRunner().invoke(cli.app, [*typed, "model.d_model=64"])
    assert result.output.split("\n", 1)[1] == again.output


def test_a_grid_survives_the_way_to_yaml_and_back(grid_recipe, tmp_path):
    recipe = Recipe.load(grid_recipe)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml").variants() == recipe.variants()


def test_unknown_variants_name_the_nearest(grid_recipe):
    with pytest.raises(ConfigError) as error:
        Recipe.load(grid_recipe).variant("gla-31")
    assert str(error.value) == "variant 'gla-31': not in the grid of tiny; did you mean 'gla-3to1'?"
    with pytest.raises(ConfigError) as error:
        Recipe.load("demo").variant("pure")
    assert str(error.value) == "variant 'pure': recipe demo has no grid section; leave --variant out"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"mixers": {"gatd_deltanet": []}}, "mixers: unknown mixer 'gatd_deltanet'; did you mean 'gated_deltanet'?"),
        (
            {"ratios": {"3to1": {"attention": 1}}},
            "ratios: 3to1 has no share for `linear`, which stands for the mixer; add one",
        ),
        (
            {"ratios": {"3to1": {"linear": 3, "atention": 1}}},
            "ratios: unknown mixer 'atention' in 3to1; did you mean 'attention'?",
        ),
        (
            {"mixers": {"attention": []}},
            "ratios: 3to1 mixes 'attention' with itself; move it from mixers to others",
        ),
        (
            {"others": {"gla-pure": []}},
            "others: 'gla-pure' is already the name of a mixer at a ratio; choose another",
        ),
        ({"seeds": []}, "seeds: List should have at least 1 item after validation, not 0, got []"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice; give it once"),
        ({"ratios": {}, "others": {}}, "has no variant; give mixers and ratios, or others"),
        ({"mixer": {}}, "mixer: unknown key 'mixer' in the recipe; did you mean 'mixers'?"),
    ],
)
def test_errors_say_the_fix(part, message):
    with pytest.raises(ConfigError) as error:
        GridConfig.parse({**GRID, **part})
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["study/340m", "study/1.3b", "study/mini"])
def test_every_variant_of_the_study_loads(name):
    recipe = Recipe.load(name)
    variants = recipe.variants()
    assert len(variants) == 6 * 5 + 1
    for variant in variants.values():
        layers = [spec.mixer for spec in Recipe.load(name, variant.overrides).model.layer_specs()]
        share = {"24to1": 24, "12to1": 12, "6to1": 6, "3to1": 3}.get(variant.ratio or "")
        full = [i for i, mixer in enumerate(layers) if mixer == "attention"]
        if share:
            rule = [i for i in range(len(layers)) if (i + 1) % (share + 1) == 0]
            assert full == (rule or [len(layers) - 1])
        else:
            assert full == (list(range(24)) if variant.name == "transformer" else [])
