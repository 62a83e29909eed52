"""A recipe that is the second stage of another run: whose weights it takes, when, and what is refused."""

import json
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from hybridlm.lm.parts.errors import CheckpointError, ConfigError, UserError
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.run import Run
from hybridlm.tools.pretrain import pretrain

LR0 = "optim={lr: 1.0e-12, weight_decay: 0}"  # what is trained with it stays, to float32, what it began with
WIDER = "model.ratio={gated_deltanet: 1, attention: 1}"


def go(recipe, *overrides) -> Run:
    return pretrain(Recipe.load(recipe, ["train.valid_every=0", *overrides]), Console(quiet=True))


@pytest.fixture
def first(tiny_recipe) -> Run:
    """Stage one, trained."""
    return go(tiny_recipe, "name=first", "train.steps=2", "optim.lr=0.05")


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-7) for name in a)


@pytest.mark.parametrize("stage", [0, 3])
def test_step_0_has_the_weights_of_the_other_runs_newest_checkpoint(tiny_recipe, first, stage, monkeypatch):
    monkeypatch.chdir(first.folder.parent)
    given = ["name=second", "train.steps=2", LR0, f"train.zero_stage={stage}", "seed=5"]
    second = go(tiny_recipe, *given, "init=first")  # relative to where the command runs, as the paths of data are
    assert close(second.weights(), first.weights())
    assert not close(go(tiny_recipe, *given, "name=alone").weights(), first.weights())
    origins = json.loads((second.folder / "origins.json").read_text())
    assert origins == {
        "init": {"run": str(first.folder.resolve()), "name": "first", "checkpoint": "step-000002", "own": []}
    }
    assert second.recipe.init.run == "first"


def test_a_run_that_has_a_checkpoint_no_longer_needs_what_it_began_with(tiny_recipe, first):
    init = f"init={first.folder}"
    whole = go(tiny_recipe, "name=whole", init)
    schedule = "optim.schedule={kind: constant, warmup: 0}"
    whole = go(tiny_recipe, "name=kept", init, schedule)
    go(tiny_recipe, "name=parts", init, schedule, "train.steps=4")
    shutil.rmtree(first.folder)
    parts = go(tiny_recipe, "name=parts", init, schedule)
    losses = [{r["step"]: r["loss"] for r in run.metrics() if r["kind"] == "train"} for run in (whole, parts)]
    assert losses[0] == losses[1]
    go(tiny_recipe, "name=parts", schedule, "train.steps=9")
    assert "init" in json.loads((parts.folder / "origins.json").read_text())
    changed = [json.loads(line)["key"] for line in (parts.folder / "changes.jsonl").read_text().splitlines()]
    assert changed == ["train.steps", "train.steps"]
    with pytest.raises(ConfigError, match=r"^init: run '.*first': no recipe\.yaml there"):
        go(tiny_recipe, "name=new", init)


def test_what_the_other_run_lacks_stays_as_it_is_drawn_where_the_recipe_says_so(tiny_recipe, first):
    untied = ["name=second", "train.steps=1", LR0, "model.tie_embeddings=false"]
    with pytest.raises(ConfigError) as error:
        go(tiny_recipe, *untied, f"init={first.folder}")
    assert str(error.value) == (
        f"init: {first.newest_checkpoint()}: the weights of another model: lm_head.weight is absent there and "
        "(300, 32) here; set the recipe's model to that of the run, or let them begin anew with init.missing"
    )
    assert not Recipe.load(tiny_recipe, untied).run_folder().exists()
    second = go(tiny_recipe, *untied, f"init={{run: {first.folder}, missing: ['lm_*', norm.weight]}}")
    found, before = second.weights(), first.weights()
    head = found.pop("lm_head.weight")
    assert close(found, before)
    alone = go(tiny_recipe, *untied, "name=alone")
    assert torch.allclose(head, alone.weights()["lm_head.weight"], atol=1e-7)
    assert json.loads((second.folder / "origins.json").read_text())["init"]["own"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "model.d_model=16",
            r"another model: embed\.weight is \(300, 32\) there and \(300, 16\) here; .* and \d+ more; ",
        ),
        (
            "model.ffn=null",
            r"another model: blocks\.0\.ffn.* is \(.*\) there and absent here; .*set the recipe's model to",
        ),
        ("init.missing=[routr*]", r"^init\.missing: 'routr\*' fits no parameter; the nearest is '"),
        ("init.run=/nowhere", r"^init: run '/nowhere': no recipe\.yaml there"),
        (
            "data.train=[{name: made-up, format: json, path: CORPUS, select: {hash: [0.5, 1.0]}}]",
            r"^init: '.*first' has another tokenizer than this recipe's data; take that one",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_folder(tiny_recipe, first, change, says):
    change = change.replace("CORPUS", str(tiny_recipe.parent / "corpus.jsonl"))
    given = [f"init={{run: {first.folder}, missing: []}}", change, "name=second"]
    with pytest.raises(ConfigError, match=says) as error:
        go(tiny_recipe, *given)
    assert "\n" not in str(error.value)
    assert not Recipe.load(tiny_recipe, given).run_folder().exists()


def test_the_tokenizer_that_the_error_names_is_the_fix(tiny_recipe, first):
    fix = f"data.tokenizer={{kind: file, path: {first.folder / 'tokenizer'}}}"
    go(tiny_recipe, f"init={first.folder}", fix, "name=second", "train.steps=1")


def test_an_import_has_its_own_start_and_gives_one(tiny_recipe, first, tmp_path):
    step = first.newest_checkpoint()
    imported = first.checkpoints / "step-000000"
    step.rename(imported)
    (imported / "optimizer.safetensors").unlink()
    state = json.loads((imported / "state.json").read_text())
    (imported / "state.json").write_text(json.dumps({**state, "step": 0}))
    weights = {name: tensor.bfloat16() for name, tensor in load_file(imported / "model.safetensors").items()}
    save_file(weights, imported / "model.safetensors")
    second = go(tiny_recipe, f"init={first.folder}", "name=second", "train.steps=1", LR0)
    assert close(second.weights(), {name: tensor.float() for name, tensor in weights.items()})
    with pytest.raises(
        ConfigError, match=r"^init: '.*first' holds imported weights, which training starts from; leave"
    ):
        go(tiny_recipe, f"init={second.folder}", "name=first")
    (imported / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"^init: .*model\.safetensors: not readable"):
        go(tiny_recipe, f"init={first.folder}", "name=third")


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(tiny_recipe, first, monkeypatch):
    init = f"init={first.folder}"
    with monkeypatch.context() as patch, pytest.raises(UserError):

        def full(*_, **__):
            raise CheckpointError("no space")

        patch.setattr("hybridlm.lm.train.checkpoint.Checkpoints.save", full)
        go(tiny_recipe, "name=second", init, "train.steps=2")
    again = go(tiny_recipe, "name=second", init, "train.steps=2")
    assert close(again.weights(), go(tiny_recipe, "name=other", init, "train.steps=2").weights())


def test_the_short_form_and_the_long_one_are_the_same(tiny_recipe):
    short, long = (Recipe.load(tiny_recipe, [given]) for given in ("init=runs/a", "init={run: runs/a}"))
    assert short == long
    assert Recipe.parse(json.loads(short.model_dump_json())).init.run == "runs/a"
    with pytest.raises(ConfigError, match=r"init\.run"):
        Recipe.load(tiny_recipe, ["init={missing: [a]}"])
