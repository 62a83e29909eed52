"""Names that a terminal, a figure, a Markdown table or a page could take for something else are shown as they are."""

import io
import shlex
import shutil
import sys
from pathlib import Path

import matplotlib
import pytest
from rich.console import Console

from hybridlm.eval.console import markdown_table, plain_table, stage
from hybridlm.eval.figures import save_figure
from hybridlm.lm.data.registered.sources import fetch_command
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.run import Run
from hybridlm.tools import cli
from hybridlm.tools.arguments import console
from hybridlm.tools.report_page.collect import collect

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OLD = Path(__file__).parents[1] / "house" / "old_runs" / "hybrid"
NAMES = (
    "[/b]",
    "[bold]x",
    "[red]",
    ":smile:",
    "$\\frac{$",
    "$x$",
    "a|b",
    "<script>alert(1)</script>",
    "\\[",
    "é",
    "_x",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_a_name_as_it_is(name, capsys):
    console().print(f"plot: {name}", highlight=False)
    console().print(plain_table(name, (name,), [(name,)]))
    assert capsys.readouterr().out.count(name) == 4


@pytest.mark.parametrize("name", NAMES)
def test_so_do_the_table_and_the_stage_on_any_console(name):
    out = io.StringIO()
    plain = Console(file=out, width=100)
    plain.print(plain_table(name, (name,), [(name,)]))
    with stage(plain, name):
        pass
    assert out.getvalue().count(name) == (5 if name != ":smile:" else 3)


def test_bytes_that_are_no_text_are_shown_as_their_code(capsys):
    console().print("a\udcffb")
    assert capsys.readouterr().out == "a\\udcffb\n"


@pytest.mark.parametrize("name", ["plain", "a b", "a#b", "[/b]", "$x", "it's", "*"])
def test_a_command_to_paste_means_the_folder_that_it_names(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    shutil.copy(OLD / "recipe.yaml", folder)
    for fails in (Run(folder).newest_checkpoint, lambda: collect([folder])):
        with pytest.raises(ConfigError) as error:
            fails()
        assert shlex.split(str(error.value).partition("train it first: ")[2]) == ["hybridlm", "train", str(folder)]
    assert shlex.split(fetch_command("sotu", folder)) == ["hybridlm", "fetch", "sotu", "--cache", str(folder)]


def test_a_cell_of_a_markdown_table_stays_one_cell():
    assert markdown_table(("a|b", "n"), [("x\ny", "1")]) == "| a\\|b | n |\n| --- | ---: |\n| x y | 1 |\n"


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$", "$", "\\$", "a$b$c$"])
def test_a_figure_shows_a_name_as_text_and_powers_of_ten_as_formulas(name, tmp_path):
    figure, axes = plt.subplots(layout="constrained")
    axes.plot([1, 10], [1, 1e6], label=name)
    axes.set(title=name, xlabel=name, ylabel=name, yscale="log")
    axes.legend()
    figure.suptitle(name)
    save_figure(figure, tmp_path / "a.svg")
    plt.close(figure)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.count(f"<!-- {name} -->") == 5
    assert "<!-- $\\mathdefault{10^{0}}$ -->" in drawn


def test_a_run_of_any_name_can_be_reported(tmp_path, monkeypatch, capsys):
    names = ("[b] $\\frac{$", "<script>alert(1)<", "[bold]$x$")
    folders = [tmp_path / name for name in names]
    for folder in folders:
        shutil.copytree(OLD, folder)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(sys, "argv", ["hybridlm", "report", *map(str, folders), "--out", str(tmp_path / "page.html")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    said, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    for name in names:
        assert f"│ {name} " in said
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;" in page


def test_the_folder_one_is_in_has_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(OLD, tmp_path / "here"))
    monkeypatch.setattr(sys, "argv", ["hybridlm", "report", "."])
    with pytest.raises(SystemExit):
        cli.main()
    assert "│ here │" in capsys.readouterr().out


def test_a_terminal_is_not_commanded_by_a_cell():
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system=None).print(
        plain_table("t", ("c",), [("a\x1b[2Jb",)])
    )
    assert "\x1b[2J" not in out.getvalue() and "a\\x1b[2Jb" in out.getvalue()
