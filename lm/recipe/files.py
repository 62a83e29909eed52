"""Recipe files: finding one by path or name, following `extends:`, applying `KEY=VALUE` overrides."""

from pathlib import Path
from typing import Any

import yaml

from ..parts.errors import ConfigError
from ..parts.strict import nearest

RECIPES = Path(__file__).parents[2] / "recipes"


def find_recipe(path_or_name: str | Path) -> Path:
    """A path as given, or `NAME` / `FOLDER/NAME` below recipes/, with or without .yaml."""
    path = Path(path_or_name).expanduser()
    for candidate in (path, RECIPES / path, RECIPES / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    names = [str(p.relative_to(RECIPES).with_suffix("")) for p in sorted(RECIPES.rglob("*.yaml"))]
    raise ConfigError(
        f"recipe {str(path_or_name)!r}: no such file and no recipe of that name; {nearest(str(path), names)}"
    )


def load_tree(path_or_name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """A recipe of any kind before it is validated, `extends:` followed and overrides applied, and its file's name."""
    path = find_recipe(path_or_name)
    tree = _read(path, seen=())
    tree.setdefault("name", path.stem)
    for override in overrides:
        _apply(tree, override)
    return tree, path.name


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path.name}: extends itself through {' -> '.join(p.name for p in seen)}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}: a recipe is a mapping of sections, got {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    beside = path.parent / f"{parent}.yaml"
    base = _read(beside if beside.is_file() else find_recipe(parent), (*seen, path.resolve()))
    base.pop("name", None)
    return _merge(base, tree)


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
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected KEY=VALUE, e.g. train.steps=100")
    *parents, last = key.strip().split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not valid YAML; quote it") from None
    if isinstance(value, str) and text.strip()[:1] not in ("'", '"', "|", ">"):
        value = text.strip()  # a plain text in full: `#` begins no comment on a command line
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
    if last in LAYER_KEYS:
        for other in LAYER_KEYS:
            node.pop(other, None)
    node[last] = value
