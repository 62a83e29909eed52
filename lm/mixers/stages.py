"""A mixer's file runs in two stages, so that a recipe is read without torch and a mixer is still one file.

The first stage is the file up to its first import of torch: the options. The second, the layer, runs when somebody asks
the module for a name that is not there yet. Line numbers, tracebacks and type checkers see one ordinary module.
"""

import ast
import sys
import threading
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_lock = threading.RLock()


def first_stage(name: str) -> ModuleType:
    """The module `name`, at least the first stage of which has run; later imports of it get the same module."""
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return _load(spec, _TwoStages(name, spec.origin))


def _load(spec: ModuleSpec, loader: SourceFileLoader) -> ModuleType:
    spec.loader = loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    parent, _, leaf = spec.name.rpartition(".")
    setattr(sys.modules[parent], leaf, module)  # as an import statement does
    return module


class _TwoStages(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        tree = ast.parse(self.get_data(self.path), self.path)
        cut = next((i for i, statement in enumerate(tree.body) if _imports_torch(statement)), len(tree.body))
        layer, tree.body = tree.body[cut:], tree.body[:cut]
        namespace = module.__dict__
        exec(compile(tree, self.path, "exec"), namespace)
        if not layer:
            return

        def missing(name: str) -> Any:
            """PEP 562: the second stage runs once, and then the module answers for itself."""
            if name.startswith("__"):  # what the import system asks of any module
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            with _lock:
                if namespace.pop("__getattr__", None) is missing:
                    try:
                        exec(compile(ast.Module(layer, []), self.path, "exec"), namespace)
                    except BaseException:
                        namespace["__getattr__"] = missing  # the next one to ask gets the error again
                        raise
            return getattr(module, name)

        namespace["__getattr__"] = missing


def _imports_torch(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import(names=names):
            modules = [alias.name for alias in names]
        case ast.ImportFrom(module=str(source), level=0):
            modules = [source]
        case _:
            return False
    return any(module.partition(".")[0] == "torch" for module in modules)
