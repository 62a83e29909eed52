"""Recipe files as text: what is read as what, what is refused, and that a refusal is one short line."""

import os
import time
from pathlib import Path

import pytest

from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.files import as_override
from hybridlm.lm.recipe.yaml_text import DEEPEST, read_yaml, write_yaml

BASE = "name: base\ndata: {train: [{name: sotu}]}\ntrain: {steps: 5}\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("18446744073709551615", 2**64 - 1),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("2026-11-28", "2026-11-28"),
        ("1:30", "1:30"),
        ("'10'", "10"),
        ("~", None),
        ("", None),
        ("größer", "größer"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("{no: 1}", {"no": 1}),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    found = read_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["1e-3", "1e3", "010", "yes", "2026-11-28", "0o7", "~", "", "1:30", ".inf", "a: b"])
def test_text_that_looks_like_something_else_stays_text(text):
    assert read_yaml(write_yaml({"a": [text]})) == {"a": [text]}


def test_numbers_survive():
    values = [1e-05, 1e22, 0.1, -3, 2**63, True, None]
    assert read_yaml(write_yaml(values)) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands in line 1 already; keep one"),
        ("m:\n  x: 1\n  x: 1", "line 3: the key 'x' stands in line 2 already; keep one"),
        (
            "a: !!python/name:os.system x",
            "line 1: the tag 'tag:yaml.org,2002:python/name:os.system' is not read; leave it out",
        ),
        ("a: !!binary aGk=", "line 1: the tag 'tag:yaml.org,2002:binary' is not read; leave it out"),
        ("a: &x {b: 1}\nc: {<<: *x}", "line 2: the merge key << is not read; use extends:, or write the values out"),
        ("1: a", "line 1: the key '1' is read as a int; quote it"),
        ("true: a", "line 1: the key 'true' is read as a bool; quote it"),
        ("~: a", "line 1: the key '~' is read as a null; quote it"),
        ("[a]: b", "line 1: a key is a name, not a list or a mapping"),
        ("a: 99999999999999999999", "line 1: '99999999999999999999' is beyond 64 bits"),
        ("a: 0x" + "f" * 17, "line 1: '0xfffffffffffffffff' is beyond 64 bits"),
        ('a: "x\\0y"', "line 1: a control character, U+0000, in a value; leave it out"),
        ('a: "\\ud800"', "line 1: a control character, U+D800, in a value; leave it out"),
        ("a: &x [*x]", "line 1: nested deeper than 32 levels, through an alias of what holds it"),
        (f"a: {'[' * 5000}", "line 1: nested deeper than 32 levels"),
        (BOMB, "holds more than 50,000 values, aliases counted each time; write fewer"),
        ("x" * 300_000, "is 300,000 characters long; give at most 262,144"),
    ],
)
def test_what_would_hide_a_mistake_is_refused(text, message):
    started = time.process_time()
    with pytest.raises(ConfigError) as error:
        read_yaml(text)
    assert str(error.value) == message
    assert time.process_time() - started < 2


def test_as_deep_as_is_allowed():
    text = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert str(read_yaml(text)) == text


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a:\n\t- 1", "a: b: c", "%YAML 9", "--- 1\n--- 2", "a: *nowhere", "a: \x07", "a: '", "? [", "&"],
)
def test_broken_yaml_is_one_line(text):
    with pytest.raises(ConfigError) as error:
        read_yaml(text)
    said = str(error.value)
    assert said.startswith("not valid YAML: ") and "\n" not in said and len(said) < 400


@pytest.fixture
def write(tmp_path: Path):
    """Writes a file of the folder and returns its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def error_of(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        Recipe.load(path, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: a recipe is a mapping of sections, got nothing"),
        (b"# nothing", "r.yaml: a recipe is a mapping of sections, got nothing"),
        (b"- 1", "r.yaml: a recipe is a mapping of sections, got list"),
        (b"name: caf\xe9", "r.yaml: not UTF-8 at byte 9; save it as UTF-8"),
        ("name: x".encode("utf-16"), "r.yaml: not UTF-8 at byte 0; save it as UTF-8"),
        (b"x" * 300_000, "r.yaml: is larger than 262,144 bytes; a recipe is not"),
        (b"extends: [demo]", "r.yaml: extends: ['demo'] is no name of a recipe; give one, e.g. extends: demo"),
        (b"extends: 3", "r.yaml: extends: 3 is no name of a recipe; give one, e.g. extends: demo"),
        (b"extends: ''", "r.yaml: extends: '' is no name of a recipe; give one, e.g. extends: demo"),
        (b"extends: r", "r.yaml: extends itself through r.yaml"),
        (
            b"extends: demmo",
            "r.yaml: extends: recipe 'demmo': no such file and no recipe of that name; did you mean 'demo'?",
        ),
    ],
)
def test_a_file_that_is_no_recipe(write, content, message):
    assert error_of(write("r.yaml", content)) == message


def test_a_byte_order_mark_and_windows_lines_are_read(write):
    assert Recipe.load(write("r.yaml", "\ufeff" + BASE.replace("\n", "\r\n"))).train.steps == 5


def test_a_long_chain_of_files(write):
    write("r0.yaml", BASE)
    for i in range(1, 20):
        write(f"r{i}.yaml", f"extends: r{i - 1}")
    assert Recipe.load(write("last.yaml", "extends: r10")).train.steps == 5
    assert error_of(write("last.yaml", "extends: r19")) == (
        "r4.yaml: extends goes on for more than 16 files; merge some of them"
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-of-that-name/x", "", "\udcff"])
def test_a_name_that_no_file_can_have(name):
    assert error_of(name).startswith("recipe ")


def test_a_folder_and_a_pipe_are_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert error_of(tmp_path).startswith(f"recipe '{tmp_path}': is a folder; ")
    assert "no such file" in error_of(tmp_path / "pipe.yaml")


@pytest.mark.parametrize(
    "override", ["", "=", "=3", "train.steps", ".=3", "train.=3", ".steps=3", "train..steps=3", " =3"]
)
def test_an_override_is_a_key_and_a_value(write, override):
    path = write("r.yaml", BASE)
    assert error_of(path, override) == f"override {override!r}: expected KEY=VALUE, e.g. train.steps=100"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps={a: 1, a: 2}", "line 1: the key 'a' stands in line 1 already; keep one"),
        ("train.steps=!!python/none x", "the tag 'tag:yaml.org,2002:python/none' is not read; leave it out"),
        ("größe=3", "unknown key 'größe' in the recipe"),
        ("train.steps=\udcff", "'\\udcff' is not valid YAML; quote it"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number, unable to parse string as a number, got 'fast'"),
    ],
)
def test_overrides_are_read_like_files(write, override, message):
    assert message in error_of(write("r.yaml", BASE), override)


@pytest.mark.parametrize(
    "override",
    [
        f"optim.lr={'x' * 100_000}",
        f"{'x' * 100_000}=1",
        f"train.{'x' * 100_000}=1",
        f"model.pattern=[{'x' * 100_000}]",
        f"model.pattern=[{{attention: {{{'x' * 100_000}: 1}}}}]",
        f"data.train=[{{name: x, format: {'x' * 100_000}}}]",
        f"data.train=[{{name: {'x' * 100_000}, format: json}}]",
        f"data.train=[{{name: x, select: {{hash: [{'1' * 10}.5, 0]}}}}]",
        f"name={'x' * 100_000}",
        f"train.out={'{' * 100_000}",
        f"grid={{mixers: {{{'x' * 100_000}: []}}, ratios: {{a: {{linear: 1}}}}}}",
        f"grid={{mixers: {{gla: []}}, ratios: {{{'x' * 100_000}: {{linear: 1}}}}}}",
        f"train.steps=[{', '.join(['1'] * 10_000)}]",
        f"eval.needles={{lengths: [{', '.join(['1'] * 10_000)}]}}",
    ],
    ids=lambda override: override[:40],
)
def test_errors_show_no_more_than_the_beginning_of_a_value(write, override):
    said = error_of(write("r.yaml", BASE), override)
    assert max(map(len, said.splitlines())) < 600
    assert len(said.splitlines()) <= 21


@pytest.mark.parametrize("folder", ["[b]", "1e3", "a: b", "#x", "yes", "'q", '"', "a\\b", "é😀", "*x", "2026-11-28"])
def test_a_folder_of_any_name_can_be_an_override(write, folder):
    assert Recipe.load(write("r.yaml", BASE), [as_override("train.out", folder)]).train.out == folder
