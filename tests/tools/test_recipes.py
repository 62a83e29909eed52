"""What `hybridlm recipes` says about a grid, against counts of its own."""

import pytest
from typer.testing import CliRunner

from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.files import RECIPES, load_tree
from hybridlm.tools import cli
from hybridlm.tools.recipes import select
from hybridlm.tools.summary import LONG, size_of

runner = CliRunner(env={"COLUMNS": "100"})
MIB = 2**20


def size(name: str, variant: str):
    return size_of(Recipe.load(name, Recipe.load(name).variant(variant).overrides))


@pytest.mark.parametrize(
    ("variant", "non_embedding"),
    [
        # 24 layers of 4 d^2 and an FFN of 3 d 2816, two norms each, and the last norm
        ("transformer", 24 * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024) + 1024),
        # 6 d^2 in the published sizes would be 0.75 d keys; these are 1.5 d, q k v g o and the gates
        (
            "gated_deltanet-pure",
            21 * (2 * 1024 * 1536 + 3 * 1024 * 3072 + 3 * 1024 * 2816)
            + 21 * (2 * 6 * 1024 + 2 * 6 + 4 * 6144 + 512 + 2 * 1024)
            + 1024,
        ),
    ],
)
def test_parameters_at_340m(variant, non_embedding):
    found = size("study/340m", variant)
    assert found.non_embedding == non_embedding
    assert found.parameters == non_embedding + 2 * 32000 * 1024  # embedding and head


@pytest.mark.parametrize(
    ("variant", "layer_floats"),
    [
        ("hgrn-pure", (1_024, 2_048)),
        ("hgrn2-pure", (131_072, 262_144)),
        ("retnet-pure", (262_144, 1_048_576)),
        ("gla-pure", (131_072, 524_288)),
    ],
)
def test_states_are_as_large_as_published(variant, layer_floats):
    for name, floats in zip(("study/340m", "study/1.3b"), layer_floats, strict=True):
        found = size(name, variant)
        assert (found.state, found.state_per_token) == (24 * 4 * floats, 0)


@pytest.mark.parametrize(("name", "layers"), [("deltanet", 24), ("gated_deltanet", 21)])
def test_states_with_convolutions(name, layers):
    memory, channels = {"deltanet": (131_072, 3_072), "gated_deltanet": (786_432, 6_144)}[name]
    assert size("study/340m", f"{name}-pure").state == layers * (4 * memory + 2 * 3 * channels)


def test_what_grows_is_the_full_attention():
    found = size("study/340m", "hgrn-3to1")
    assert found.layers == {"hgrn": 18, "attention": 6}
    assert found.state_per_token == 6 * 2 * 1024 * 2  # keys and values in bf16
    assert found.state_bytes(LONG) == found.state + LONG * found.state_per_token
    windowed = Recipe.load("study/mini", ["model.attention.window=32"])
    assert (size_of(windowed).state, size_of(windowed).state_per_token) == (24 * 32 * 2 * 64 * 4, 0)


def test_budgets_are_the_published_ones():
    for name, tokens, batch in (("study/340m", 20e9, 2**19), ("study/1.3b", 100e9, 2**20)):
        recipe = Recipe.load(name)
        assert recipe.train.batch * recipe.model.context == batch
        assert size_of(recipe).tokens == pytest.approx(tokens, rel=1e-4)


def test_variants_side_by_side_fit_100_columns():
    result = runner.invoke(cli.app, ["recipes", "study/340m", "--only", "*-6to1"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split()[1:] for line in lines if "-6to1" in line}
    assert list(rows)[-1] == "gated_deltanet-6to1" and len(rows) == 6
    state = "54.6 MiB"
    assert " ".join(rows["gated_deltanet-6to1"]) == f"18 + 3 487 M 421 M {state} 12 KiB 1.07 G 20 G"


def test_markdown_has_the_same_rows():
    result = runner.invoke(cli.app, ["recipes", "study/340m", "--only", "transformer", "--markdown"])
    assert "| transformer | 24 | 374 M | 308 M | 0 B | 96 KiB | 1.08 G | 20 G |" in result.output.splitlines()


def test_a_recipe_without_a_grid_is_one_row():
    result = runner.invoke(cli.app, ["recipes", "demo"])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines() if "4.67 M" in line] == ["demo"]


def test_the_list_says_which_recipes_have_variants():
    result = runner.invoke(cli.app, ["recipes"], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "31 variants: hybridlm recipes study/mini" in result.output


def test_a_glob_that_matches_nothing():
    with pytest.raises(ConfigError) as error:
        select(Recipe.load("study/mini"), "hgrn-puer")
    assert str(error.value) == "--only 'hgrn-puer': matches no variant of study-mini; did you mean 'hgrn-pure'?"
    with pytest.raises(ConfigError, match=r"^recipe demo: has no grid section; "):
        select(Recipe.load("demo"), None)


def test_no_two_recipes_leave_their_runs_in_one_folder():
    names = [load_tree(path)[0]["name"] for path in sorted(RECIPES.rglob("*.yaml"))]
    assert len(names) > 20 and len(set(names)) == len(names)
    assert "moh" not in names  # which is where README's conversion lies
