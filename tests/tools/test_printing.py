"""Text of models and files on a terminal: control characters are shown, brackets stay, a pipe gets every byte."""

import io
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn

from hybridlm.eval.console import plain_table, stage
from hybridlm.lm.parts.errors import Caution
from hybridlm.lm.parts.terminal import PlainConsole, shown, write
from hybridlm.tools import cli, doctor
from hybridlm.tools.arguments import console
from hybridlm.tools.doctor import Check

NAMES = ["[/b]", "[red]x[/red]", "a[/]b", ":smile:", "[link=file:///x]y[/link]", "[0]", "C:\\[x]\\"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, \ttab\nand newline, é 漢 😀 a\u200db", None),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\rb\x08\x7f\x00\x9b", "a\\rb\\x08\\x7f\\x00\\x9b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\udc80", "\\udc80"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out_and_all_else_stays(text, expected):
    assert shown(text) == (text if expected is None else expected)
    terminal, file = Terminal(), io.StringIO()
    write(text, terminal)
    write(text, file)
    assert terminal.getvalue() == shown(text) and file.getvalue() == text


@pytest.mark.parametrize("name", NAMES)
def test_brackets_in_names_are_printed_as_they_are(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = PlainConsole(file=io.StringIO(), width=200)
    out.print(f"page: {name}", highlight=False)
    out.print(f"\nsample after {name!r}:", style="bold", highlight=False)
    with stage(out, f"converting {name}"):
        pass
    out.print(plain_table(f"title {name}", [f"head {name}", "b"], [[f"cell {name}", "1"]]))
    with Progress(TextColumn("{task.description}", markup=False), console=out) as progress:
        progress.add_task(f"task {name}")
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    for what in ("page: ", "converting ", "title ", "head ", "cell ", "task "):
        assert what + name in printed
    assert repr(name) in printed


def test_the_command_line_prints_on_such_a_console():
    assert isinstance(console(), PlainConsole)


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_terminal_gets_names_with_their_control_characters_shown(name):
    out = PlainConsole(file=Terminal(), width=100, force_terminal=True, color_system=None)
    out.print(f"run {name}\x1b]0;x\x07", highlight=False)
    out.print(plain_table("t\x1b[2J", ["a"], [["b\x1b[2J"]]))
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    assert f"run {name}\\x1b]0;x\\x07" in printed and "t\\x1b[2J" in printed and "b\\x1b[2J" in printed
    assert "\x1b]" not in printed and "\x1b[2J" not in printed


def test_the_doctor_names_a_path_with_brackets(monkeypatch):
    monkeypatch.setattr(doctor, "doctor", lambda: [Check("a [/b]", "problem", "in [/c]", "rm [/d]")])
    out = PlainConsole(file=io.StringIO(), width=100)
    assert doctor.run_doctor(out) == 1
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    assert "a [/b]: rm [/d]" in printed and "in [/c]" in printed


def test_an_error_about_a_name_with_control_characters_is_shown(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "argv", ["hybridlm", "prepare", "no\x1b[2Jsuch.yaml"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "\x1b" not in terminal.getvalue() and terminal.getvalue().startswith("hybridlm: ")


def test_a_caution_is_one_line_and_another_warning_says_where_it_comes_from(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", cli._show)
        warnings.warn("mind [/b] the \x1b[2J gap", Caution, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    first, *rest = terminal.getvalue().splitlines()
    assert first == "hybridlm: mind [/b] the \\x1b[2J gap"
    assert "test_printing.py" in rest[0] and rest[0].endswith("UserWarning: something else")


@pytest.mark.slow
def test_generated_text_reaches_a_terminal_shown_and_a_pipe_as_it_is(tmp_path: Path):
    code = "import sys; from hybridlm.lm.parts.terminal import write; write('a\\x1b[2Jb', sys.stdout)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"a\x1b[2Jb"
    leader, follower = pty.openpty()
    with subprocess.Popen(command, stdout=follower) as process:
        os.close(follower)
        assert process.wait() == 0
    assert os.read(leader, 100) == b"a\\x1b[2Jb"
    os.close(leader)
