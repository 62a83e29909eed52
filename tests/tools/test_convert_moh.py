"""`hybridlm convert llama --moh` and `convert sweep`: who is shared, what it costs, and what cannot be asked for."""

import io
import json
import shlex
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.lm.hf.heads import with_heads
from hybridlm.lm.hf.importing import read_model, read_tokenizer
from hybridlm.lm.mixers.attention.head_options import HeadsConfig
from hybridlm.lm.parts.errors import ConfigError, DataError
from hybridlm.lm.run import Run
from hybridlm.tests.hf.helpers import build
from hybridlm.tests.hf.llamas import save
from hybridlm.tools import cli
from hybridlm.tools.convert import convert_checkpoint
from hybridlm.tools.moh.asked import parse
from hybridlm.tools.moh.calibration import sharing, stretches_of
from hybridlm.tools.moh.convert import convert_to_moh
from hybridlm.tools.moh.ranking import ranked, shared_sets
from hybridlm.tools.moh.sweep import sweep

QUIET = Console(quiet=True)
SIX = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
TEXT = "the cat sat on the mat and that was that, 0123456789\n" * 20


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A Llama of six heads, and texts."""
    place = tmp_path_factory.mktemp("place")
    save(place / "src", **SIX)
    (place / "text.txt").write_text(TEXT)
    (place / "empty.txt").write_text("")
    (place / "no.txt").write_bytes(b"\xff\xfe\x00")
    return place


@pytest.fixture(scope="module")
def dense(place):
    return load_pretrained(place / "src")


@pytest.fixture(scope="module")
def calibration(place):
    text = str(place / "text.txt")
    return stretches_of(text, "--calibrate", read_tokenizer(place / "src"), read_model(place / "src"), 130)


def heads_apart(model, ids) -> list[torch.Tensor]:
    """What each head of each layer adds to the residual stream, [T, heads, D], by hand from the output projection."""
    found = []
    for mixer in model.mixers():
        weight = mixer.o_proj.weight.unflatten(1, (mixer.n_heads, mixer.head_dim))  # [D, heads, head_dim]
        mixer.o_proj.register_forward_pre_hook(
            lambda m, args, w=weight: found.append(
                torch.einsum("thc,dhc->thd", args[0][0].unflatten(-1, w.shape[1:]), w)
            )
        )
    model(ids)
    return found


@torch.no_grad()
def test_norm_is_the_mean_length_of_what_a_head_adds(place, dense, calibration):
    scores = ranked(dense, calibration, "norm")
    sums, tokens = [torch.zeros(6, dtype=torch.float64) for _ in range(2)], 0
    for row in calibration.rows:
        model = load_pretrained(place / "src")
        added = heads_apart(model, torch.tensor([[calibration.prefix_id, *row]]))
        for total, own in zip(sums, added, strict=True):
            total += own[1:].norm(dim=-1).double().sum(0)
        tokens += len(row)
    for found, total in zip(scores, sums, strict=True):
        assert torch.allclose(found, total / tokens, rtol=1e-5)


def loss_without(model, rows, prefix: int, layer: int, head: int | None) -> float:
    """Nats a token of the rows, with the rows of the output projection that belong to a head set to 0."""
    weight = list(model.mixers())[layer].o_proj.weight
    kept, dim = weight.detach().clone(), list(model.mixers())[layer].head_dim
    with torch.no_grad():
        if head is not None:
            weight[:, head * dim : (head + 1) * dim] = 0
        total = 0.0
        for row in rows:
            ids = torch.tensor([[prefix, *row]])
            total += float(F.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum"))
        weight.copy_(kept)
    return total / sum(map(len, rows))


def test_ablation_is_the_loss_without_the_head(dense, calibration):
    scores = ranked(dense, calibration, "ablation")
    given = (dense, calibration.rows, calibration.prefix_id)
    base = loss_without(*given, 0, None)
    for layer, own in enumerate(scores):
        expected = torch.tensor([loss_without(*given, layer, head) - base for head in range(6)], dtype=torch.float64)
        assert torch.allclose(own, expected, atol=1e-5)
        assert own.abs().max() > 1e-3


def test_gradient_is_the_slope_at_full_gates(dense, calibration):
    """By the difference of the loss over a small step of one head's rows of the output projection."""
    scores = ranked(dense, calibration, "gradient")
    model, step = deepcopy(dense).double(), 1e-4
    for layer, head in ((0, 0), (0, 5), (1, 2)):
        mixer = list(model.mixers())[layer]
        block = mixer.o_proj.weight[:, head * mixer.head_dim : (head + 1) * mixer.head_dim]
        slopes = []
        for row in calibration.rows:
            ids, losses = torch.tensor([[calibration.prefix_id, *row]]), []
            for factor in (1 + step, (1 - step) / (1 + step), 1 / (1 - step)):
                with torch.no_grad():
                    block.mul_(factor)
                    losses.append(float(F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])))
            slopes.append(abs(losses[0] - losses[1]) / (2 * step))
        assert float(scores[layer][head]) == pytest.approx(sum(slopes) / len(slopes), rel=1e-3)


def test_nothing_that_ranking_does_stays_on_the_model(dense, calibration):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    for by in ("norm", "gradient", "ablation"):
        ranked(dense, calibration, by)
    assert not any(mixer.o_proj._forward_pre_hooks for mixer in dense.mixers())
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert all(parameter.grad is None for parameter in dense.parameters())


def test_the_highest_are_shared_and_of_equal_ones_the_first():
    scores = [torch.tensor([0.1, 0.5, 0.5, 0.0, 0.5, 0.2]), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 2.0])]
    assert shared_sets(scores, 2, 1) == [[1, 2], [0, 5]]
    assert shared_sets(scores, 3, 3) == [[0, 1, 2], [3, 4, 5]]
    assert shared_sets(scores, 0, 1) == [[], []]


def test_where_the_first_ones_rank_first_nothing_is_listed(dense, calibration, monkeypatch):
    monkeypatch.setattr("hybridlm.tools.moh.calibration.ranked", lambda *_: [torch.arange(6, 0, -1.0)] * 2)
    heads = HeadsConfig.parse({"router": "query_norm", "shared": 2, "active": 4})
    assert sharing(dense, heads, "norm", calibration).shared_heads is None


@pytest.mark.parametrize("by", ["norm", "gradient", "ablation"])
def test_a_run_has_the_heads_that_rank_highest(place, tmp_path, dense, calibration, by):
    text = str(place / "text.txt")
    convert_to_moh(str(place / "src"), tmp_path / by, None, f"shared=2,active=4,shared-by={by}", text, 130, QUIET)
    specs = Run(tmp_path / by).recipe.model.layer_specs()
    assert [spec.options.heads.shared_heads for spec in specs] == shared_sets(ranked(dense, calibration, by), 2, 1)
    assert {(spec.options.heads.active, spec.options.heads.router) for spec in specs} == {(4, "query_norm")}


def test_what_it_prints_measures_the_same_conversion_wherever_it_lies(place, tmp_path):
    printed = Console(file=io.StringIO(), width=80)
    src, text = tmp_path / "a b#[/b]$x", str(place / "text.txt")
    shutil.copytree(place / "src", src)
    convert_to_moh(
        str(src), tmp_path / "to it", None, "shared=3,active=6,route=groups,shared-by=norm", text, 130, printed
    )
    measure, tune = printed.file.getvalue().splitlines()[-2:]  # type: ignore[attr-defined]
    assert shlex.split(measure.partition("tuning: ")[2]) == [
        *("hybridlm", "convert", "sweep", str(src), "--shared", "3", "--active", "6", "--shared-by", "norm"),
        *("--route", "groups", "--calibrate", text, "--calibrate-tokens", "130"),
    ]
    assert tune == f"tune it with hybridlm train '{tmp_path}/to it' data.train=[...]"
    assert "every token uses all heads, so nothing is saved" in printed.file.getvalue()  # type: ignore[attr-defined]
    convert_checkpoint(str(src), tmp_path / "whole of it", None, printed)
    told = printed.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert told.count(f" '{tmp_path}/whole of it'") == told.count("hybridlm ") == 3


def test_groups_are_shared_whole(place, tmp_path):
    text, asked = str(place / "text.txt"), "shared=3,active=6,shared-by=norm,route=groups"
    convert_to_moh(str(place / "src"), tmp_path / "run", None, asked, text, 130, QUIET)
    for spec in Run(tmp_path / "run").recipe.model.layer_specs():
        assert spec.options.heads.shared_heads in ([0, 1, 2], [3, 4, 5]) and spec.options.heads.route == "groups"


def test_the_published_ratios_can_be_asked_for(place, tmp_path):
    convert_to_moh(str(place / "src"), tmp_path / "run", None, "moh-llama3", None, 130, QUIET)
    heads = Run(tmp_path / "run").recipe.model.layer_specs()[0].options.heads
    assert (heads.shared_heads, heads.active, heads.router_dtype) == ([0, 1, 2], 4, "model")


def test_a_sweep_gives_the_sources_own_bits_where_all_heads_are_active(place, tmp_path):
    text, found = str(place / "text.txt"), tmp_path / "sweep.json"
    given = {"calibrate": text, "calibrate_tokens": 130, "text": text, "tokens": 130, "json_file": found}
    console = Console(record=True, width=120)
    sweep(str(place / "src"), 1, [6, 4, 2], ["first", "norm"], **given, console=console)
    written = json.loads(found.read_text())
    assert written["shared_by"]["first"]["6"] == written["shared_by"]["norm"]["6"] == written["all"]
    assert len({written["shared_by"]["first"][n] for n in ("6", "4", "2")}) == 3
    said = console.export_text()
    assert "1 shared by" in said and f"all heads: {written['all']:.4f}" in " ".join(said.split())


def test_options_by_name():
    asked = parse("shared=3, active=7,shared-by=norm,route=groups,straight-through=dense,normalise=none")
    assert asked.shared_by == "norm" and asked.heads is not None
    assert (asked.heads.shared, asked.heads.active, asked.heads.route) == (3, 7, "groups")
    assert (asked.heads.straight_through, asked.heads.normalise, asked.heads.router) == ("dense", "none", "query_norm")
    assert (
        parse("active=7").heads == HeadsConfig(router="query_norm", active=7) and parse("active=7").shared_by == "first"
    )


MALFORMED = {
    "": "'' is not KEY=VALUE; give for example shared=3,active=7",
    "shared": "'shared' is not KEY=VALUE",
    "shared=": "'shared=' is not KEY=VALUE",
    "shared=3,,active=7": "'' is not KEY=VALUE",
    "shard=3": "unknown key 'shard'; did you mean 'shared'?",
    "shared=3,shared=3": "shared is there twice; give it once",
    "shared=-1": "--moh shared: '-1' is no number of heads",
    "active=²": "is no number of heads",
    "active=99999999999999999999": "is no number of heads",
    "shared=3,shared-by=size": "--moh shared-by: 'size' is unknown; allowed: ablation, first, gradient, norm",
    "route=head": "--moh: route: Input should be 'heads' or 'groups', got 'head'",
    "moh-llama": "'moh-llama' is not KEY=VALUE",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_options(text):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert MALFORMED[text] in str(error.value)


WRONG = {
    "llama src out --moh shared=3,active=2": "src: attention.heads.active: 2 is below shared=3",
    "llama src out --moh shared=2,active=9": "src: attention.heads.active: 9 is more than n_heads=6",
    "llama src out --moh shared=2,active=2": "leaves no head to route",
    "llama src out --moh shared=2,active=3,route=groups": "2 is no multiple of 3",
    "llama src out --moh shared=2,active=4,shared-by=best": "'best' is unknown",
    "llama src out --moh shared:2": "'shared:2' is not KEY=VALUE",
    "llama src out --moh active=4 --calibrate text.txt": "shared-by=first ranks no heads; leave it out",
    "llama src out --calibrate text.txt": "ranks heads for --moh, which is not given",
    "llama src out --moh active=4,shared-by=norm --calibrate nowhere.txt": "text 'nowhere.txt': no such file",
    "llama src out --moh active=4,shared-by=norm --calibrate empty.txt": "--calibrate: text 'empty.txt': is empty",
    "llama src out --moh active=4,shared-by=norm --calibrate no.txt": "--calibrate: text 'no.txt': not UTF-8",
    "llama src out --moh active=4,shared-by=norm --calibrate-tokens 0": "Invalid value for '--calibrate-tokens'",
    "llama nowhere out --moh active=4": "nowhere: no such file or folder",
    "llama src full --moh active=4": "full: already there and not an empty folder",
    "llama hybrid out --moh active=2": "hybrid: its layers are gla, attention; allowed: attention alone",
    "llama hybrid out --moh moh-llama3": "hybrid: its layers are gla, attention; allowed: attention alone",
    "llama routed out --moh active=2": "routed: its heads are routed already",
    "sweep src --shared 2 --active 4 --calibrate text.txt": "shared-by=first ranks no heads; leave it out",
    "sweep src --shared 2": "Missing option '--active'",
    "sweep src --shared 2 --active 4,x": "'4,x' is no list of whole numbers",
    "sweep src --shared 2 --active 4,2": "leaves no head to route",
    "sweep src --shared 2 --active 4 --shared-by norm,most": "--shared-by: 'most' is unknown",
    "sweep src --shared 2 --active 4 --text nowhere.txt": "--text: text 'nowhere.txt': no such file",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_converted_is_one_line_and_changes_nothing(line, place, sources, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(path.relative_to(place) for path in place.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["hybridlm", "convert", *shlex.split(line)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code in (1, 2)
    assert WRONG[line] in " ".join(said.replace("│", " ").split()), said
    assert "Traceback" not in said
    assert sorted(path.relative_to(place) for path in place.rglob("*")) == before


@pytest.fixture(scope="module")
def sources(place):
    """Models that are not converted, and a destination that is taken."""
    save_pretrained(build(pattern=["gla", "attention"]), place / "hybrid")
    four = {"n_heads": 4, "heads": {"router": "query_norm", "active": 3}}
    save_pretrained(build(pattern=["attention"], attention=four), place / "routed")
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("years of work")


def test_a_failure_on_the_way_leaves_no_folder(place, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("hybridlm.lm.hf.importing.write_safetensors", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_to_moh(str(place / "src"), tmp_path / "run", None, "shared=1,active=4", None, 130, QUIET)
    assert not list(tmp_path.iterdir())
    half_written = tmp_path / ".run-abc.partial"  # of a conversion that was killed
    half_written.mkdir()
    monkeypatch.undo()
    convert_to_moh(str(place / "src"), tmp_path / "run", None, "shared=1,active=4", None, 130, QUIET)
    assert Run(tmp_path / "run").recipe.model == with_heads(
        read_model(place / "src"), HeadsConfig(router="query_norm", shared=1, active=4), "src"
    )


def test_without_a_text_the_default_one_is_named(place, tmp_path, monkeypatch):
    monkeypatch.setattr("hybridlm.tools.moh.calibration.CACHE", tmp_path / "cache")

    def unreachable(*_):
        raise DataError("sotu: no network")

    monkeypatch.setattr("hybridlm.eval.texts.read", unreachable)
    with pytest.raises(DataError, match=r"--calibrate: text 'sotu': .*give a text file instead, or .*fetch sotu"):
        convert_to_moh(str(place / "src"), tmp_path / "run", None, "active=4,shared-by=norm", None, 130, QUIET)
    assert not (tmp_path / "run").exists()
