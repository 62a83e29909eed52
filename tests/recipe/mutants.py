"""Recipes gone wrong: shipped ones, made tiny, with random values and sections changed. The same for every seed."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from hybridlm.lm import Recipe
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.recipe.yaml_text import read_yaml, write_yaml

SHIPPED = ("demo", "sotu-hour", "qwen3-5", "olmo-hybrid", "study/mini", "study/340m")
TINY = (
    *("model.d_model=32", "model.n_layers=2", "model.context=32", "model.vocab_size=300", "model.ffn.hidden=48"),
    *("train.steps=3", "train.batch=2", "train.micro_batch=1", "train.threads=1", "train.log_every=1"),
    *("train.valid_batches=1", "train.precision=fp32", "eval={}", "grid=null"),
)
EDGES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 13, 31, 64, 10**6, 2**31, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 0.999, 1e-8, 1e-30, 1e-320, 1e30, 1e308),
    *(float("inf"), float("-inf"), float("nan"), True, False, None),
    *(
        "",
        " ",
        "x",
        "1",
        "none",
        "../x",
        "a/b",
        "[/b]",
        "$\\frac{$",
        "<script>",
        "é" * 200,
        "x" * 5000,
        "{name}",
        "{",
        "~x",
    ),
    *([], {}, [1], [[]], [None], ["x"], {"x": 1}, {"": 1}, [0.0, 1.0], [1.0, 0.0], [1e30, -1e30]),
)
TEXTS = (
    "\t",
    "\0",
    "\x85",
    "\ufeff",
    "- ",
    ": ",
    "{",
    "[",
    "'",
    '"',
    "&a ",
    "*a",
    "!!x ",
    "<<: *a\n",
    "%",
    "\\",
    "#",
    "\n",
)
TUNING: dict[str, Any] = {  # sections that a recipe has only where it says so
    "init": {"run": "runs/none", "missing": ["*.weight"]},
    "distill": {"teacher": "runs/none", "temperature": 2.0, "weight": 0.5, "hidden": 1.0, "layers": "all"},
    "freeze": [{"match": ["embed*", "blocks.0.*"], "until": 0.5}, {"match": ["norm.*"], "until": 2}],
}
SLOW = {"n_layers"}  # many layers are no mistake, but take long to make


def tiny(name: str) -> dict[str, Any]:
    """A shipped recipe with every option spelled out, small enough to train within a second."""
    layers = "model.pattern=[gated_deltanet, attention]"
    return read_yaml(Recipe.load(name, [*TINY, layers]).to_yaml())


def mutants(seed: int, n: int, bases: list[dict[str, Any]]) -> Iterator[str]:
    """n texts of recipes, each with one to three things changed."""
    rng = random.Random(seed)
    for _ in range(n):
        tree = copy.deepcopy(rng.choice(bases))
        if "optim" in tree and rng.random() < 0.3:
            tree |= copy.deepcopy({key: TUNING[key] for key in rng.sample(sorted(TUNING), rng.choice((1, 2)))})
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice((_value, _value, _value, _nudge, _nudge, _delete, _swap, _layers, _layers, _rename))(tree, rng)
        text = write_yaml(tree)
        yield _noise(text, rng) if rng.random() < 0.2 else text


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in pairs for place in ((tree, key), *_places(value))]


def _pick(tree: Any, rng: random.Random, kinds: tuple[type, ...] = (object,)) -> tuple[Any, Any] | None:
    """A random place that holds a value of these kinds; sections with few values as often as those with many."""
    sections = [key for key in tree if key != "name"]
    node, key = tree, rng.choice(sections) if sections else None
    while key is not None:
        value = node[key]
        found = [(value, k) for v, k in _places(value) if v is value and k not in SLOW]
        if not found or rng.random() < 0.1:
            return (node, key) if isinstance(value, kinds) else None
        node, key = rng.choice(found)
    return None


def _value(tree: dict[str, Any], rng: random.Random) -> None:
    if place := _pick(tree, rng):
        place[0][place[1]] = copy.deepcopy(rng.choice(EDGES))


def _nudge(tree: dict[str, Any], rng: random.Random) -> None:
    for _ in range(20):
        place = _pick(tree, rng, (int, float))
        if place and not isinstance(place[0][place[1]], bool):
            value = place[0][place[1]]
            place[0][place[1]] = rng.choice(
                (value + 1, value - 1, value * 2, value * 3, -value, value / 2, value * 1e3)
            )
            return


def _delete(tree: dict[str, Any], rng: random.Random) -> None:
    if place := _pick(tree, rng):
        del place[0][place[1]]


def _rename(tree: dict[str, Any], rng: random.Random) -> None:
    place = _pick(tree, rng)
    if place and isinstance(place[0], dict):
        place[0][rng.choice(("x", "", "[/b]", "a/b", f"{place[1]}s", "é", "$x$", "name"))] = place[0].pop(place[1])


def _swap(tree: dict[str, Any], rng: random.Random) -> None:
    a, b = _pick(tree, rng), _pick(tree, rng)
    if a and b:
        first, second = a[0][a[1]], b[0][b[1]]
        a[0][a[1]], b[0][b[1]] = copy.deepcopy(second), copy.deepcopy(first)


def _layers(tree: dict[str, Any], rng: random.Random) -> None:
    model = tree.get("model")
    if not isinstance(model, dict):
        return
    for key in ("pattern", "ratio", "layers"):
        model.pop(key, None)
    names = [*MIXERS, "atention", ""]

    def layer() -> Any:
        name = rng.choice(list(MIXERS) * 3 + names)
        if rng.random() < 0.5:
            return name
        fields = list(MIXERS.options(name).model_fields) if name in MIXERS else ["x"]
        return {name: {rng.choice(fields): copy.deepcopy(rng.choice(EDGES[:12] + EDGES))}}

    n = rng.randrange(1, 4)
    spelling = rng.choice(("pattern", "pattern", "layers", "ratio"))
    model[spelling] = (
        {rng.choice(names): rng.choice((1, 1, 2, 0)) for _ in range(n)}
        if spelling == "ratio"
        else [layer() for _ in range(n)]
    )
    model["n_layers"] = rng.choice((n, n, 2, 6, 1))


def _noise(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.insert(at, lines[rng.randrange(len(lines))])  # mostly a key that stands twice
        case 1:
            lines[at] = rng.choice(TEXTS) + lines[at]
        case 2:
            lines[at] = lines[at] + rng.choice(TEXTS)
        case _:
            return text[: rng.randrange(len(text))]
    return "\n".join(lines)
