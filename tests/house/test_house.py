"""The rules of the house, read off the source: one-way imports, small files, every package listed."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
NOT_PACKAGED = {"tests", "docs", "build", "dist", "runs"}
MAX_LINES = 400


class Import(NamedTuple):
    """One imported name: absolute, also for relative imports; `top_level` when importing the file imports it."""

    file: str
    line: int
    name: str
    top_level: bool

    def of(self, *packages: str) -> bool:
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


def source_files() -> list[Path]:
    """Every Python file of the project, tests included, relative to the root."""
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    outside = {"build", "dist", "runs"}
    return sorted(f for f in files if not outside & set(f.parts) and not any(part.startswith(".") for part in f.parts))


def imports_in(source: str, file: Path) -> Iterator[Import]:
    """All imports of `source`, which is the text of `file` (relative to the root)."""
    package = ("hybridlm", *file.parts[:-1])

    def visit(node: ast.AST, top_level: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(str(file), node.lineno, alias.name, top_level)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = [*package[: len(package) - level + 1]] if level else []
                for alias in names:
                    name = ".".join([*base, *([module] if module else []), alias.name])
                    yield Import(str(file), node.lineno, name, top_level)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for child in node.orelse:
                    yield from visit(child, top_level)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, False)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, top_level)

    yield from visit(ast.parse(source), True)


def imports_under(*folders: str) -> list[Import]:
    """All imports of the files below `folders`, tests left out."""
    files = [f for f in source_files() if f.parts[0] != "tests" and any(f.is_relative_to(folder) for folder in folders)]
    return [found for file in files for found in imports_in((ROOT / file).read_text(), file)]


def test_import_reader_resolves_relative_imports_and_nesting():
    source = (
        "from ..kernels import gated_scan\nfrom . import cache\nfrom ...tools.doctor import doctor\nimport os.path\n"
        "if TYPE_CHECKING:\n    import triton\ntry:\n    import fla\nexcept ImportError:\n    pass\n"
        "def f():\n    import deepspeed\n"
    )
    found = {(i.name, i.top_level) for i in imports_in(source, Path("lm/model/block.py"))}
    assert found == {
        ("hybridlm.lm.kernels.gated_scan", True),
        ("hybridlm.lm.model.cache", True),
        ("hybridlm.tools.doctor.doctor", True),
        ("os.path", True),
        ("fla", True),
        ("deepspeed", False),
    }


def test_pyproject_lists_exactly_the_folders_with_an_init():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inits = [f.parent for f in source_files() if f.name == "__init__.py" and f.parts[0] not in NOT_PACKAGED]
    assert sorted(listed) == sorted(".".join(("hybridlm", *folder.parts)) for folder in inits)


def test_every_source_folder_is_a_package():
    folders = {f.parent for f in source_files() if f.parts[0] not in NOT_PACKAGED and f.parts[:2] != ("eval", "tasks")}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_no_file_is_longer_than_400_lines():
    lengths = {str(f): len((ROOT / f).read_text().splitlines()) for f in source_files()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_only_the_engine_imports_deepspeed():
    imports = imports_under("lm", "kernels", "eval", "tools", "recipes")
    assert [i for i in imports if i.of("deepspeed") and i.file != "lm/train/engine.py"] == []


def test_kernels_know_nothing_of_the_rest():
    assert [i for i in imports_under("kernels") if i.of("hybridlm.lm", "hybridlm.eval", "hybridlm.tools")] == []


def test_lm_reaches_eval_and_tools_only_inside_functions():
    assert [i for i in imports_under("lm") if i.top_level and i.of("hybridlm.eval", "hybridlm.tools")] == []


def test_models_and_mixers_know_nothing_of_training():
    assert [i for i in imports_under("lm/model", "lm/mixers") if i.of("hybridlm.lm.train")] == []


def test_optional_packages_are_imported_only_inside_functions():
    """Two kinds of file are themselves loaded only inside functions: a triton_*.py, and the files of lm/hf."""
    allowed = {
        i
        for i in imports_under("kernels", "lm")
        if (i.of("triton") and Path(i.file).name.startswith("triton_"))
        or (i.of("transformers") and i.file.startswith("lm/hf/") and not i.file.endswith("__init__.py"))
    }
    optional = {i for i in imports_under("kernels", "lm") if i.top_level and i.of("triton", "fla", "transformers")}
    assert optional - allowed == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("hybridlm.tools.cli", ["torch", "numpy", "transformers", "datasets", "matplotlib"]),
        ("hybridlm.lm", ["torch", "transformers"]),
        ("hybridlm.kernels", ["triton", "fla", "transformers", "deepspeed"]),
        ("hybridlm.lm.mixers", ["triton", "fla", "transformers", "deepspeed"]),
        ("hybridlm.lm.model", ["triton", "fla", "transformers", "deepspeed"]),
    ],
)
def test_importing_stays_light(module: str, absent: list[str]):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(absent)!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
