"""A mixer's file runs in two stages, so that a recipe is read without torch and a mixer is still one file.

The first stage is the file up to its first import of torch: the options. The second, the layer, runs when somebody asks
the module for a name that is not there yet. Line numbers, tracebacks and type checkers see one ordinary module.
"""

import __future__

import ast
import sys
import threading
from collections.abc import Collection, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any


def run_in_two_stages(modules: Collection[str]) -> None:
    """Have these modules, by full name, imported so from now on, by whoever imports them."""
    sys.meta_path.insert(0, _Finder(modules))


class _Finder(MetaPathFinder):
    def __init__(self, modules: Collection[str]):
        self.modules = frozenset(modules)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in self.modules else None
        if spec is not None and spec.origin is not None:
            spec.loader = _TwoStages(fullname, spec.origin)
        return spec


class _TwoStages(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        tree = ast.parse(self.get_data(self.path), self.path)
        cut = next((i for i, statement in enumerate(tree.body) if _imports_torch(statement)), len(tree.body))
        layer, tree.body = tree.body[cut:], tree.body[:cut]
        options = compile(tree, self.path, "exec", dont_inherit=True)
        if layer:
            second = compile(ast.Module(layer, []), self.path, "exec", _futures(options), dont_inherit=True)
            vars(module)["__getattr__"] = _Missing(vars(module), second)
        exec(options, vars(module))


class _Missing:
    """The module's `__getattr__` (PEP 562) until its second stage has run: once, whatever thread asks first."""

    def __init__(self, namespace: dict[str, Any], layer: CodeType):
        self.namespace, self.layer, self.lock, self.running = namespace, layer, threading.RLock(), False

    def __call__(self, name: str) -> Any:
        if not name.startswith("__"):  # those the import system asks any module for
            with self.lock:
                if name not in self.namespace and not self.running:
                    self._run()
                if name in self.namespace:
                    return self.namespace[name]
        raise AttributeError(f"module {self.namespace['__name__']!r} has no attribute {name!r}")

    def _run(self) -> None:
        self.running = True  # a file that imports itself in a circle finds what it has so far
        try:
            exec(self.layer, self.namespace)
        except BaseException:
            self.running = False  # the next one to ask gets the error again
            raise
        self.namespace.pop("__getattr__", None)


def _futures(code: CodeType) -> int:
    """The flags of its `from __future__` imports, which hold for the whole file."""
    features = (getattr(__future__, name) for name in __future__.all_feature_names)
    return sum(feature.compiler_flag for feature in features if code.co_flags & feature.compiler_flag)


def _imports_torch(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import(names=names):
            modules = [alias.name for alias in names]
        case ast.ImportFrom(module=str(source), level=0):
            modules = [source]
        case _:
            return False
    return any(module.partition(".")[0] == "torch" for module in modules)
