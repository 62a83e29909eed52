"""docs/ARCHITECTURE.md says how to add a mixer: its words are carried out on a copy, and the contracts run there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE = re.compile(r'^        "ema": "ema:EMA",$', re.M)


def blocks() -> list[str]:
    """The page's Python, block by block."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "ARCHITECTURE.md").read_text(), re.S | re.M)


@pytest.fixture(scope="module")
def with_ema(tmp_path_factory) -> Path:
    """A folder that holds a copy of the package with the page's mixer in it."""
    home = tmp_path_factory.mktemp("copy")
    copy = home / "hybridlm"
    for part in ("kernels", "lm", "recipes", "eval", "tools", "tests/contracts"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__init__.py", "__main__.py", "pyproject.toml", "tests/conftest.py", "tests/oracles.py"):
        shutil.copy(ROOT / file, copy / file)
    file, line = blocks()
    (copy / "lm" / "mixers" / "ema.py").write_text(file)
    registry = copy / "lm" / "mixers" / "__init__.py"
    text, last = registry.read_text(), '"gated_conv": "gated_conv:GatedConv",\n'
    assert last in text and LINE.search(line)
    registry.write_text(text.replace(last, last + line))
    return home


def run(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=home, env=env, capture_output=True, text=True, check=False)


def test_one_file_and_one_line_make_a_mixer_that_passes_the_contracts(with_ema):
    tests = with_ema / "hybridlm" / "tests" / "contracts"
    found = run(with_ema, "-m", "pytest", str(tests), "-k", "ema", "-p", "no:cacheprovider", "-o", "addopts=-ra")
    assert found.returncode == 0, found.stdout + found.stderr
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed and int(passed[1]) >= 25, found.stdout


def test_the_mixer_s_name_is_known_to_recipes_without_torch(with_ema):
    code = (
        "import sys; from hybridlm.lm import Recipe;"
        "recipe = Recipe.load('demo', ['model.pattern=[ema, attention]', 'model.ema={ffn_hidden: 64}']);"
        "assert recipe.model.layer_specs()[0].options.ffn_hidden == 64, recipe.model;"
        "print('torch' in sys.modules)"
    )
    found = run(with_ema, "-c", code)
    assert found.stdout == "False\n", found.stdout + found.stderr
