"""A run folder is a path: not YAML, not a format string, not markup."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.recipe.train import TrainConfig
from hybridlm.lm.run import Run
from hybridlm.tools import cli
from hybridlm.tools.pretrain import pretrain

NAMES = [
    *("exp #2", "a{b}", "{name}", "2026", "2026-11-28", "1e3", "true", "a: b", "a, b", "[v2]", "~", "~nobody", "$HOME"),
    *("größe", "'quoted", '"', "- x", "*", "&a", "!tag", "%x", " leading", "trailing ", "null", "step-000001"),
]


@pytest.fixture
def trained(monkeypatch) -> list[tuple[Recipe, Path | None]]:
    """What `hybridlm train` would train, and where."""
    calls: list[tuple[Recipe, Path | None]] = []
    monkeypatch.setattr("hybridlm.tools.pretrain.pretrain", lambda recipe, _, folder: calls.append((recipe, folder)))
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_in_the_folder_that_was_named(name, tiny_recipe, tmp_path, trained, monkeypatch):
    folder = tmp_path / "there" / name
    recipe = Recipe.load(tiny_recipe)
    Run.of(recipe, folder).keep()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path / "there")
    for given in (str(folder), f"{folder}/", f"./{name}", str(tmp_path / "link")):
        result = CliRunner().invoke(cli.app, ["train", given])
        assert result.exit_code == 0, result.output
        loaded, where = trained.pop()
        assert where is not None and where.resolve() == folder and loaded == recipe
        assert Run.of(loaded, where).folder.resolve() == folder


@pytest.mark.parametrize(
    "place", ["train.out=elsewhere", "train . out = elsewhere", "train={steps: 9, out: elsewhere}"]
)
def test_a_run_folder_with_another_place_for_it_is_refused(place, tiny_recipe, tmp_path, trained):
    Run.of(Recipe.load(tiny_recipe), tmp_path / "run").keep()
    result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "run"), place])
    assert isinstance(result.exception, ConfigError) and not trained
    assert str(result.exception).startswith("train.out='elsewhere': the run goes on in ")


@pytest.mark.parametrize(
    ("out", "folder"),
    [
        ("runs/exp #2", "runs/exp #2"),
        ("runs/a{b}", "runs/a{b}"),
        ("runs/{name}/{0}", "runs/tiny/{0}"),
        ("'runs/a: b'", "runs/a: b"),
        ('"runs/2026"', "runs/2026"),
        ("runs/$HOME/[v2]", "runs/$HOME/[v2]"),
    ],
)
def test_the_folder_of_a_recipe_is_taken_as_it_is_written(tiny_recipe, out, folder):
    assert Recipe.load(tiny_recipe, [f"train.out={out}"]).run_folder() == Path(folder)


def test_a_name_with_brackets_is_printed_whole_and_found_again(tiny_recipe, tmp_path):
    folder = tmp_path / "exp #2 [v2] {x}"
    said = [io.StringIO(), io.StringIO()]
    for steps, out in zip((2, 4), said, strict=True):
        pretrain(Recipe.load(tiny_recipe, [f"train.steps={steps}"]), Console(file=out, width=300), folder)
    assert f"resumed {folder} at step 2" in said[1].getvalue()
    assert f"plot: {folder / 'plots' / 'loss.png'}" in said[1].getvalue()
    assert Run(folder).newest_checkpoint().name == "step-000004"


@pytest.mark.parametrize(
    ("batch", "given", "processes", "expected"),
    [
        (8, None, 1, 8),
        (8, None, 8, 1),
        (12, None, 1, 6),
        (256, None, 8, 8),
        (7, None, 1, 7),
        (22, None, 2, 1),
        (8, 2, 2, 2),
    ],
)
def test_the_micro_batch_follows_from_batch_and_processes(batch, given, processes, expected):
    assert TrainConfig(steps=1, batch=batch, micro_batch=given).sequences_per_forward(processes) == expected


@pytest.mark.parametrize(
    ("batch", "given", "processes", "message"),
    [
        (4, None, 8, "train.batch=4: 8 processes cannot share it evenly; use 8"),
        (20, None, 8, "train.batch=20: 8 processes cannot share it evenly; use 16 or 24"),
        (
            *(12, 8, 2),
            "train.micro_batch=8: does not divide the 6 sequences that each of 2 processes has of train.batch=12; "
            "use 1, 2, 3 or 6, or leave it out",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_names_what_can(batch, given, processes, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig(steps=1, batch=batch, micro_batch=given).sequences_per_forward(processes)
    assert str(error.value) == message
