"""Recipe files: finding one by path or name, following `extends:`, applying `KEY=VALUE` overrides."""

import json
from pathlib import Path
from typing import Any

from ..parts.errors import ConfigError, brief, concerning
from ..parts.strict import nearest
from .yaml_text import LONGEST, read_yaml

RECIPES = Path(__file__).parents[2] / "recipes"
LONGEST_CHAIN = 16  # files that extend each other


def find_recipe(path_or_name: str | Path) -> Path:
    """A path as given, or `NAME` / `FOLDER/NAME` below recipes/, with or without .yaml."""
    try:
        path = Path(path_or_name).expanduser()
        for candidate in (path, RECIPES / path, RECIPES / f"{path}.yaml"):
            if candidate.is_file():
                return candidate
    except (OSError, RuntimeError, ValueError):  # too long for a file system, or the home of nobody
        path = Path()
    names = [str(p.relative_to(RECIPES).with_suffix("")) for p in sorted(RECIPES.rglob("*.yaml"))]
    what = "is a folder" if path.is_dir() else "no such file and no recipe of that name"
    raise ConfigError(f"recipe {brief(str(path_or_name))}: {what}; {nearest(str(path), names)}")


def load_tree(path_or_name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """A recipe of any kind before it is validated, `extends:` followed and overrides applied, and its file's name."""
    path = find_recipe(path_or_name)
    tree = _read(path, seen=())
    tree.setdefault("name", path.stem)
    for override in overrides:
        _apply(tree, override)
    return tree, path.name


def as_override(key: str, value: object) -> str:
    """KEY=VALUE that is read as this value: a folder that is called 1e3 or [b] too."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    chain = " -> ".join(p.name for p in seen)
    if path.resolve() in seen:
        raise ConfigError(f"{path.name}: extends itself through {chain}")
    if len(seen) == LONGEST_CHAIN:
        raise ConfigError(f"{path.name}: extends goes on for more than {LONGEST_CHAIN} files; merge some of them")
    tree = _parse(path)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str) or not parent.strip():
        raise ConfigError(f"{path.name}: extends: {brief(parent)} is no name of a recipe; give one, e.g. extends: demo")
    base = _read(_extended(path, parent), (*seen, path.resolve()))
    base.pop("name", None)
    return _merge(base, tree)


def _extended(path: Path, parent: str) -> Path:
    """The file that `path` extends under the name `parent`: beside it, or as `find_recipe` finds one."""
    try:
        beside = find_recipe((path.parent / f"{parent}.yaml").absolute())
    except ConfigError:
        with concerning(f"{path.name}: extends"):
            return find_recipe(parent)
    return beside


def _parse(path: Path) -> dict[str, Any]:
    """One file's tree."""
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST + 1)
        if len(raw) > LONGEST:
            raise ConfigError(f"is larger than {LONGEST:,} bytes; a recipe is not")
        tree = read_yaml(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise ConfigError(f"{path.name}: a recipe is a mapping of sections, got {found}")
    return tree


LAYER_KEYS = ("pattern", "ratio", "layers")


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mappings key by key; a spelling of the layers in `top` replaces that of `base`."""
    merged = dict(base)
    if any(key in top for key in LAYER_KEYS):
        merged = {key: value for key, value in merged.items() if key not in LAYER_KEYS}
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted KEY=VALUE; VALUE is YAML: train.steps=9, model.ratio={gated_deltanet: 3, attention: 1}."""
    key, equals, text = override.partition("=")
    *parents, last = (part.strip() for part in key.split("."))
    if not equals or not all((*parents, last)):
        raise ConfigError(f"override {brief(override)}: expected KEY=VALUE, e.g. train.steps=100")
    try:
        value = read_yaml(text)
    except ConfigError as error:
        said = str(error)
        if said.startswith("not valid YAML"):
            said = f"{brief(text)} is not valid YAML; quote it"
        raise ConfigError(f"override {brief(override)}: {said}") from None
    if isinstance(value, str) and text.strip()[:1] not in ("'", '"', "|", ">"):
        value = text.strip()  # a plain text in full: `#` begins no comment on a command line
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {brief(override)}: {brief(part)} is a value, not a section")
    if last in LAYER_KEYS:
        for other in LAYER_KEYS:
            node.pop(other, None)
    node[last] = value
