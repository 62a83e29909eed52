"""Every number of a recipe has a range, and names can be used for files."""

import math
import types
import typing

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hybridlm.eval.synthetic.recipe import SyntheticRecipe
from hybridlm.eval.synthetic.task import Task
from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.parts.strict import Strict

UNBOUNDED = {"Select.min", "Select.max", "Select.among", "Select.exclude"}  # compared with what documents say
BASE = "name: base\ndata: {train: [{name: sotu}]}\ntrain: {steps: 5}\n"


def classes(root: type[Strict]) -> set[type[Strict]]:
    """The configuration classes that `root` is made of."""
    found: set[type[Strict]] = set()
    waiting: list[typing.Any] = [root]
    while waiting:
        current = waiting.pop()
        if isinstance(current, type) and issubclass(current, BaseModel) and current not in found:
            found.add(current)
            waiting.extend(field.annotation for field in current.model_fields.values())
        waiting.extend(typing.get_args(current))
    return found


def numbers(annotation: typing.Any, metadata: tuple[typing.Any, ...] = ()) -> list[tuple[typing.Any, ...]]:
    """The constraints of each int and float inside an annotation."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *own = typing.get_args(annotation)
        return numbers(inner, (*metadata, *own))
    if annotation in (int, float):
        flat = [one for part in metadata for one in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return [tuple(flat)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(annotation) for one in numbers(part, metadata)]
    if typing.get_origin(annotation) is typing.Literal:
        return []
    return [one for part in typing.get_args(annotation) for one in numbers(part)]


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(one) for one in kind.__subclasses__()))


def test_every_number_has_a_lower_and_an_upper_bound():
    tasks = {one for one in subclasses(Task) if one.__module__.startswith("hybridlm.eval.")}
    looked_at, missing = 0, []
    for kind in classes(Recipe) | classes(SyntheticRecipe) | tasks:
        for name, field in kind.model_fields.items():
            for found in numbers(field.annotation, tuple(field.metadata)):
                looked_at += 1
                low = any(isinstance(one, Ge | Gt) for one in found)
                high = any(isinstance(one, Le | Lt) for one in found)
                if not (low and high) and f"{kind.__name__}.{name}" not in UNBOUNDED | {"Select.hash"}:
                    missing.append(f"{kind.__name__}.{name}")
    assert missing == []
    assert looked_at > 150


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def error_of(path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        Recipe.load(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "field",
    [
        *("optim.lr", "optim.weight_decay", "optim.eps", "optim.clip", "optim.schedule.warmup", "optim.schedule.decay"),
        *("optim.schedule.final", "model.norm_eps", "model.init_std", "model.logit_softcap", "model.z_loss"),
        *("model.dropout", "model.attention.dropout", "model.attention.rope.theta", "model.attention.rope.factor"),
        *("model.gla.gate_normalizer", "model.gated_deltanet.norm_eps"),
    ],
)
def test_numbers_are_finite(base, field, value):
    assert f"{field}: Input should be a finite number" in error_of(base, f"{field}={value}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.betas=[0.9, 1.0]", "optim.betas.1: Input should be less than 1, got 1.0"),
        ("optim.betas=[-0.1, 0.9]", "optim.betas.0: Input should be greater than or equal to 0, got -0.1"),
        ("optim.lr=2", "optim.lr: Input should be less than or equal to 1, got 2"),
        ("optim.eps=1e-40", "optim.eps: Input should be greater than or equal to 1e-20, got 1e-40"),
        ("seed=-1", "seed: Input should be greater than or equal to 0, got -1"),
        (f"seed={2**63}", f"seed: Input should be less than {2**63}, got {2**63}"),
        ("model.context=1", "model.context: Input should be greater than 1, got 1"),
        ("model.d_model=1000000000", "model.d_model: Input should be less than or equal to 1048576, got 1000000000"),
        ("model.n_layers=1000000000", "model.n_layers: Input should be less than or equal to 512, got 1000000000"),
        (
            "model.ratio={attention: 1000000000, gla: 1}",
            "model.ratio.attention: Input should be less than or equal to 512, got 1000000000",
        ),
        ("model.logit_softcap=1e-30", "model.logit_softcap: Input should be greater than or equal to 0.1, got 1e-30"),
        ("model.norm_eps=1e-50", "model.norm_eps: Input should be greater than or equal to 1e-12, got 1e-50"),
        ("model.attention.rope.theta=0.5", "model.attention.rope.theta: Input should be greater than 1, got 0.5"),
        (
            "model.attention.rope={scaling: llama3, low_freq_factor: 4.0}",
            "model.attention.rope: low_freq_factor: 4 is not below high_freq_factor=4; lower it",
        ),
        ("eval.needles={depths: [1.5]}", "eval.needles.depths.0: Input should be less than"),
        ("optim.lr=true", "optim.lr: a number is wanted, got true"),
        ("train.threads=false", "train.threads: a number is wanted, got false"),
        ("model.attention.window=true", "model.attention.window: a number is wanted, got true"),
        ("model.gated_deltanet.norm_eps=true", "model.gated_deltanet.norm_eps: a number is wanted, got true"),
        ("train.out=''", "train.out: an empty path; give a file or a folder"),
        ("train.out=~nobody-of-that-name/x", "nobody has that home folder; write the path out"),
    ],
)
def test_values_that_would_train_into_nonsense(base, override, message):
    assert message in error_of(base, override)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "-x", "a/b", "a\\b", "[/b]", "<script>", "$x$", "a\n", " a", "a ", "a:b", "x" * 121]
)
def test_names_of_runs_and_validation_sets_can_be_used_for_files(base, name):
    for tree in ({"name": name}, {"data": {"train": [{"name": "sotu"}], "valid": {name: [{"name": "sotu"}]}}}):
        with pytest.raises(ConfigError, match="is no name; it is used for files and in logs"):
            Recipe.parse({"name": "base", "data": {"train": [{"name": "sotu"}]}, "train": {"steps": 5}, **tree})


@pytest.mark.parametrize("name", ["a", "held_out", "C4 en", "1.3b", "größe", "gla-6to1", "x" * 120, "+1"])
def test_ordinary_names(name):
    tree = {"name": name, "data": {"train": [{"name": "sotu"}]}, "train": {"steps": 5}}
    recipe = Recipe.parse(tree)
    assert recipe.name == name and recipe.run_folder().name == name


def test_defaults_are_finite():
    for kind in classes(Recipe):
        for name, field in kind.model_fields.items():
            assert not isinstance(field.default, float) or math.isfinite(field.default), name


@pytest.mark.parametrize(
    ("override", "twice"),
    [
        ("eval.needles.tasks=[vt, single_1, vt]", "eval.needles.tasks: 'vt'"),
        ("eval.needles.lengths=[64, 64]", "eval.needles.lengths: 64"),
        ("eval.needles.depths=[0, 0.5, 0.0]", "eval.needles.depths: 0.0"),
        ("eval.positions.modes=[reset, reset]", "eval.positions.modes: 'reset'"),
    ],
)
def test_what_is_measured_is_given_once(base, override, twice):
    with pytest.raises(ConfigError) as error:
        Recipe.load(base, [override])
    assert f"{twice} is there twice; give it once" in str(error.value)
