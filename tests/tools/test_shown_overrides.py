"""What a help text gives as an example works."""

import re

import pytest
from typer.testing import CliRunner

from hybridlm.tools import cli
from hybridlm.tools.recipes import load

EXAMPLE = re.compile(r"e\.g\. ([\w.]+=[^\s│]+)")
SHOWN = {
    "prepare": "demo",
    "train": "demo",
    "eval": "demo",
    "synthetic": "mqar/zoology-figure2",
    "mqar": "mqar/zoology-figure2",
    "bench study": "study/mini",
}


@pytest.mark.parametrize("verb", SHOWN)
def test_the_override_that_a_help_text_shows_can_be_given(verb):
    text = CliRunner().invoke(cli.app, [*verb.split(), "--help"], env={"COLUMNS": "200"}).output
    (shown,) = EXAMPLE.findall(text)
    assert load(SHOWN[verb], [shown]) != load(SHOWN[verb])


def test_these_are_all_that_take_overrides():
    def verbs(app, prefix=""):
        for command in app.registered_commands:
            name = f"{prefix}{command.name or command.callback.__name__}"
            if "[KEY=VALUE]" in CliRunner().invoke(cli.app, [*name.split(), "--help"], env={"COLUMNS": "200"}).output:
                yield name

    assert {*verbs(cli.app), *verbs(cli.bench_app, "bench ")} == set(SHOWN)
