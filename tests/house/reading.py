"""The project's source as the house's tests read it: files, imports, the graph that they make, classes."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CODE = ("kernels", "lm", "eval", "tools")
"""Folders of the package's own code."""


class Import(NamedTuple):
    """One imported name: absolute, also for relative imports.

    top_level: importing the file imports it. typing: only type checkers do, the line stands under TYPE_CHECKING.
    """

    file: str
    line: int
    name: str
    top_level: bool
    typing: bool

    def of(self, *packages: str) -> bool:
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


def source_files(*patterns: str) -> list[Path]:
    """The project's files whose names match, all Python files by default, tests included; relative to the root."""
    files = (path.relative_to(ROOT) for pattern in patterns or ("*.py",) for path in ROOT.rglob(pattern))
    outside = {"build", "dist", "runs"}
    return sorted(f for f in files if not outside & set(f.parts) and not any(part.startswith(".") for part in f.parts))


def code() -> dict[Path, str]:
    """The package's own Python files, tests and recipes left out, and what is in them."""
    return {file: (ROOT / file).read_text() for file in source_files() if file.parts[0] in CODE}


def imports_in(source: str, file: Path) -> Iterator[Import]:
    """All imports of `source`, which is the text of `file` (relative to the root)."""
    package = ("hybridlm", *file.parts[:-1])

    def visit(node: ast.AST, top_level: bool, typing: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(str(file), node.lineno, alias.name, top_level, typing)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = [*package[: len(package) - level + 1]] if level else []
                for alias in names:
                    name = ".".join([*base, *([module] if module else []), alias.name])
                    yield Import(str(file), node.lineno, name, top_level, typing)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for child in node.body:
                    yield from visit(child, False, True)
                for child in node.orelse:
                    yield from visit(child, top_level, typing)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, False, typing)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, top_level, typing)

    yield from visit(ast.parse(source), True, False)


def imports_under(*folders: str) -> list[Import]:
    """All imports of the package's own files below `folders`."""
    return [
        found
        for file, source in code().items()
        if any(file.is_relative_to(folder) for folder in folders)
        for found in imports_in(source, file)
    ]


class Edge(NamedTuple):
    """One file imports another, or a name from it; paths relative to the root."""

    file: str
    line: int
    imported: str


def edges(sources: dict[Path, str]) -> list[Edge]:
    """Every import of one of these files by another, inside functions and under TYPE_CHECKING included.

    A name that a package's `__init__` has from elsewhere is that package's: `from ..model import HybridLM` is an import
    of lm/model/__init__.py. What an `__init__` imports for type checkers from its own folder is how it lists what it
    loads on first use, and no import.
    """
    files = {module_of(file): str(file) for file in sources}
    found = []
    for one in (one for file, source in sources.items() for one in imports_in(source, file)):
        imported = files.get(one.name) or files.get(one.name.rpartition(".")[0])
        lists = one.typing and one.file.endswith("__init__.py") and one.of(module_of(Path(one.file)))
        if imported and imported != one.file and not lists:
            found.append(Edge(one.file, one.line, imported))
    return found


def module_of(file: Path) -> str:
    """The module's name: lm/model/block.py is hybridlm.lm.model.block, lm/model/__init__.py hybridlm.lm.model."""
    parts = file.with_suffix("").parts
    return ".".join(("hybridlm", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def circles(found: Iterable[Edge]) -> list[tuple[str, ...]]:
    """The files that reach each other by imports, sorted, for each such set: Tarjan's strongly connected components."""
    graph: dict[str, set[str]] = {}
    for edge in found:
        graph.setdefault(edge.file, set()).add(edge.imported)
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            at = stack.index(node)
            component = tuple(sorted(stack[at:]))
            del stack[at:]
            if len(component) > 1:
                components.append(component)

    for node in graph:
        if node not in number:
            visit(node)
    return sorted(components)


def public_classes(sources: dict[Path, str]) -> dict[str, list[str]]:
    """The files that define a class of that name outside functions, for each name without a leading underscore."""
    where: dict[str, list[str]] = {}
    for file, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(file))
    return where
