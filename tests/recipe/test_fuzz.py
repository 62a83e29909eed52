"""Random wrong recipes end in success or in one short line per problem: no traceback, no time-out, no nonsense."""

import contextlib
import io
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybridlm.eval.synthetic.recipe import SyntheticRecipe
from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError, UserError
from hybridlm.lm.recipe.files import RECIPES
from hybridlm.lm.recipe.yaml_text import read_yaml
from hybridlm.tests.recipe.mutants import SHIPPED, mutants, tiny
from hybridlm.tools import cli
from hybridlm.tools.pretrain import pretrain
from hybridlm.tools.summary import size_of

LIMIT = 60  # seconds; a dry run and a step take about one
SMALL = 2_000_000  # parameters, and tokens of a step


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError when it computes for longer; what other processes take of a busy machine does not count."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def dry_run(path: Path, monkeypatch) -> tuple[int, str]:
    """Exit code and stderr of `hybridlm train PATH --dry-run`, in this process."""
    monkeypatch.setattr(sys, "argv", ["hybridlm", "train", str(path), "--dry-run"])
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), within(LIMIT):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def what_is_wrong_with(code: int, said: str) -> str | None:
    """None for an honest end: success in silence, or an error of few short lines."""
    lines = said.splitlines()
    if code == 0:
        return f"success, but said {said[:200]!r}" if said else None
    if code != 1 or not said.startswith("hybridlm: "):
        return f"exit {code}: {said[:300]!r}"
    if len(lines) > 21 or max(map(len, lines)) > 1000:
        return f"{len(lines)} lines, the longest of {max(map(len, lines))} characters"
    return None


def outcome(run: Callable[[Any], str | None], given: Any) -> str | None:
    """What `run` finds wrong, an exception that it lets through included."""
    try:
        return run(given)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def failures(texts: Iterator[str], run: Callable[[str], str | None]) -> list[str]:
    """What went wrong with which text."""
    found = []
    for i, text in enumerate(texts):
        if wrong := outcome(run, text):
            found.append(f"mutant {i}: {wrong}")
    return found


@pytest.fixture
def dry(tmp_path, monkeypatch) -> Callable[[str], str | None]:
    def run(text: str) -> str | None:
        path = tmp_path / "mutant.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return what_is_wrong_with(*dry_run(path, monkeypatch))

    return run


def test_sixty_wrong_recipes_end_honestly(dry):
    assert failures(mutants(0, 60, [tiny("demo"), tiny("study/mini")]), dry) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_thousand_wrong_recipes_end_honestly(dry, seed):
    assert failures(mutants(seed, 250, [tiny(name) for name in SHIPPED]), dry) == []


@pytest.fixture
def corpus(tiny_recipe: Path) -> dict[str, Any]:
    """The `data` section of the tests' own recipe."""
    return read_yaml(tiny_recipe.read_text())["data"]


def trained(recipe: Recipe) -> str | None:
    """Train for the steps that the recipe has. What is wrong with how that ended, or None."""
    said = io.StringIO()
    try:
        with within(LIMIT), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            run = pretrain(recipe, Console(file=said, width=200, markup=False))
    except UserError as error:
        return None if max(map(len, str(error).splitlines())) <= 1000 else f"says {len(str(error))} characters"
    losses = [record["loss"] for record in run.metrics() if record["kind"] == "train"]
    if len(losses) != recipe.train.steps or not all(math.isfinite(loss) and loss < 1e4 for loss in losses):
        return f"success with losses {losses}"
    return None


def small(recipe: Recipe) -> bool:
    """Whether a step of it takes about a second."""
    size, train = size_of(recipe), recipe.train
    tokens = train.batch * recipe.model.context
    return max(size.parameters, tokens * size.flops_per_token / 1e3, size.state) < SMALL and train.steps <= 8


def accepted(seed: int, n: int, bases: list[dict[str, Any]], tmp_path: Path) -> Iterator[Recipe]:
    """The mutants that are small recipes."""
    for text in mutants(seed, n, bases):
        path = tmp_path / "mutant.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(ConfigError):
            recipe = Recipe.load(path, [f"train.out={tmp_path}/runs/{{name}}"])
            if small(recipe):
                yield recipe


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 18))
def test_accepted_recipes_train_into_finite_losses_or_say_why_not(seed, corpus, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # paths are among what is changed
    bases = [{**tiny(name), "data": {**tiny(name)["data"], **corpus}} for name in SHIPPED[:4]]
    wrong, tried = [], 0
    for i, recipe in enumerate(accepted(seed, 60, bases, tmp_path)):
        recipe.name = f"mutant-{i}"
        tried += 1
        if ended := outcome(trained, recipe):
            wrong.append(f"{ended}\n{(tmp_path / 'mutant.yaml').read_text()}")
    assert wrong == []
    assert tried > 3


SYNTHETIC = [
    str(p.relative_to(RECIPES).with_suffix("")) for p in sorted(RECIPES.glob("*/*.yaml")) if p.parent.name != "study"
]


@pytest.mark.parametrize("seed", [20, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(21, 25))])
def test_wrong_recipes_of_synthetic_tasks_are_refused_or_draw_examples(seed, tmp_path):
    bases = [read_yaml((RECIPES / f"{name}.yaml").read_text()) for name in SYNTHETIC]
    path, ends = tmp_path / "mutant.yaml", Counter()

    def run(text: str) -> str | None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            with within(LIMIT):
                recipe = SyntheticRecipe.load(path)
                for part in (*recipe.train, *recipe.test):
                    if part.task.length * max(part.task.vocab_size, 1) < 1 << 20:
                        part.task.sample(2, recipe.slice_seed("train", 0))
        except ConfigError as error:
            ends["refused"] += 1
            return what_is_wrong_with(1, f"hybridlm: {error}")
        ends["drawn"] += 1
        return None

    assert failures(mutants(seed, 100, [b for b in bases if "extends" not in b]), run) == []
    assert min(ends["refused"], ends["drawn"]) > 5
