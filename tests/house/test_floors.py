"""The floors of the house: a file imports only from its own floor and from those below it, and in no circle.

This counts for every import: inside functions and under TYPE_CHECKING as well.
"""

from pathlib import Path
from statistics import median

from .reading import ROOT, Edge, circles, code, edges, public_classes, source_files

FLOORS = (
    "kernels",
    "lm/parts",
    "lm/mixers",
    "lm/recipe",
    "lm/data",
    "lm/model",
    "lm/train",
    "lm/hf",
    "eval",
    "tools",
)
"""From the lowest to the highest."""
ALONE = {"lm/run.py": "lm/data", "lm/__init__.py": "lm/model"}
"""Files beside the floors' folders, and the floor that they belong to."""
CIRCLES = [("lm/hf/configuration.py", "lm/hf/modeling.py", "lm/hf/pretrained.py", "lm/hf/register.py")]
"""transformers' registration: a configuration class names its model, and a model its configuration."""

# Still to be mended; what is mended must leave this list.
MENDING_FLOORS: list[tuple[str, str]] = []
MENDING_CIRCLES: list[tuple[str, ...]] = []
MENDING_NAMES: set[str] = set()

MAX_LINES = 400
TYPICAL_LINES = 115


def floor_of(file: str) -> int | None:
    """The number of the file's floor, 0 the lowest; None outside all of them."""
    file = f"{ALONE[file]}/" if file in ALONE else file
    return next((i for i, floor in enumerate(FLOORS) if file.startswith(f"{floor}/")), None)


def upward(found: list[Edge]) -> list[tuple[str, str]]:
    """Imports from a higher floor, each pair of files once."""
    floors = {file: floor_of(file) for edge in found for file in (edge.file, edge.imported)}
    pairs = [(e.file, e.imported) for e in found if (floors[e.imported] or 0) > (floors[e.file] or 0)]
    return sorted(set(pairs))


def test_an_invented_house_is_read_as_it_is_built():
    house = {
        "lm/parts/norm.py": "import torch",
        "lm/mixers/__init__.py": "from ..parts import norm\nif TYPE_CHECKING:\n    from .gla import GLA",
        "lm/mixers/gla.py": "from . import Mixed\nif TYPE_CHECKING:\n    from ..model.decoder import Decoder",
        "lm/model/__init__.py": "",
        "lm/model/decoder.py": "def build():\n    from ...eval.texts import read\n    from ..model import cache",
        "lm/model/cache.py": "from .decoder import Decoder",
        "eval/texts.py": "from ..lm.model import Anything",
    }
    found = edges({Path(file): source for file, source in house.items()})
    assert found == [
        ("lm/mixers/__init__.py", 1, "lm/parts/norm.py"),
        ("lm/mixers/gla.py", 1, "lm/mixers/__init__.py"),
        ("lm/mixers/gla.py", 3, "lm/model/decoder.py"),
        ("lm/model/decoder.py", 2, "eval/texts.py"),
        ("lm/model/decoder.py", 3, "lm/model/cache.py"),
        ("lm/model/cache.py", 1, "lm/model/decoder.py"),
        ("eval/texts.py", 1, "lm/model/__init__.py"),
    ]
    assert upward(found) == [("lm/mixers/gla.py", "lm/model/decoder.py"), ("lm/model/decoder.py", "eval/texts.py")]
    assert circles(found) == [("lm/model/cache.py", "lm/model/decoder.py")]
    assert circles([Edge("a", 1, "b"), Edge("b", 1, "c"), Edge("c", 1, "a"), Edge("c", 2, "d")]) == [("a", "b", "c")]


def test_every_file_stands_on_a_floor():
    assert [str(file) for file in code() if floor_of(str(file)) is None] == []
    assert floor_of("lm/run.py") == FLOORS.index("lm/data") and floor_of("lm/other.py") is None


def test_imports_point_down_the_floors():
    assert upward(edges(code())) == MENDING_FLOORS


def test_no_files_import_each_other_in_a_circle():
    assert circles(edges(code())) == sorted([*CIRCLES, *MENDING_CIRCLES])


def test_a_public_class_has_its_name_for_itself():
    twice = {name for name, files in public_classes(code()).items() if len(files) > 1}
    assert twice == MENDING_NAMES


def test_no_file_is_longer_than_400_lines_and_most_are_short():
    lengths = {file: len((ROOT / file).read_text().splitlines()) for file in source_files("*.py", "*.cpp", "*.h")}
    assert {str(file): n for file, n in lengths.items() if n > MAX_LINES} == {}
    assert median(n for file, n in lengths.items() if file.parts[0] != "tests") < TYPICAL_LINES
