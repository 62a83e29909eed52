"""The rules of the house, read off the source: what is packaged, who may import what from outside, what stays light.

The floors are in test_floors.py.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .reading import ROOT, imports_in, imports_under, source_files

NOT_PACKAGED = {"tests", "docs", "build", "dist", "runs"}


def test_import_reader_resolves_relative_imports_and_nesting():
    source = (
        "from ..kernels import gated_scan\nfrom . import cache\nfrom ...tools.doctor import doctor\nimport os.path\n"
        "if TYPE_CHECKING:\n    import triton\ntry:\n    import fla\nexcept ImportError:\n    pass\n"
        "def f():\n    import deepspeed\n"
    )
    found = {(i.name, i.top_level, i.typing) for i in imports_in(source, Path("lm/model/block.py"))}
    assert found == {
        ("hybridlm.lm.kernels.gated_scan", True, False),
        ("hybridlm.lm.model.cache", True, False),
        ("hybridlm.tools.doctor.doctor", True, False),
        ("os.path", True, False),
        ("triton", False, True),
        ("fla", True, False),
        ("deepspeed", False, False),
    }


def test_pyproject_lists_exactly_the_folders_with_an_init():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inits = [f.parent for f in source_files() if f.name == "__init__.py" and f.parts[0] not in NOT_PACKAGED]
    assert sorted(listed) == sorted(".".join(("hybridlm", *folder.parts)) for folder in inits)


def test_every_source_folder_is_a_package():
    folders = {f.parent for f in source_files() if f.parts[0] not in NOT_PACKAGED and f.parts[:2] != ("eval", "tasks")}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_only_the_engine_imports_deepspeed():
    imports = imports_under("lm", "kernels", "eval", "tools")
    assert [i for i in imports if i.of("deepspeed") and i.file != "lm/train/engine.py"] == []


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
        ("hybridlm.lm.recipe.recipe", ["torch", "transformers"]),
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


def test_a_python_that_starts_in_the_checkout_finds_no_other_package_of_the_name_kernels():
    """transformers imports a `kernels` if it finds one: twice loaded, our operators would be registered twice."""
    code = "import sys, kernels; print([name for name in sys.modules if name.startswith('kernels.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["hybridlm.kernels", "transformers.models.llama.configuration_llama"])
def test_a_python_that_starts_in_the_checkout_has_transformers_and_our_operators_in_any_order(first):
    code = f"import hybridlm, {first}, hybridlm.lm.hf.modeling, transformers.models.llama.modeling_llama"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
