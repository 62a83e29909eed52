import io
import json

import pytest
import yaml
from rich.console import Console

from hybridlm.eval.jobs import Outcome
from hybridlm.eval.synthetic import sweep as sweeping
from hybridlm.eval.synthetic.plots import full_share, plot_ratio, plot_tradeoff
from hybridlm.eval.synthetic.sweep import (
    best,
    by_slice,
    header,
    metrics,
    read_results,
    spread,
    summary,
    sweep,
)
from hybridlm.lm.data.files import append_records
from hybridlm.lm.parts.errors import ConfigError, DataError, UserError
from hybridlm.tests.eval.synthetic.toy import recipe
from hybridlm.tools.synthetic import reuse_rows, run_synthetic

GRID = {
    "learning_rates": [0.01, 0.03],
    "seeds": [0, 1],
    "mixers": {"conv": {"pattern": ["gated_conv"]}, "gla": {"pattern": ["gla"]}},
}


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def in_process(monkeypatch):
    """Runs in this process, one after the other: a process of its own takes seconds to start."""

    def run(function, jobs, _at_once):
        for job in jobs:
            try:
                yield Outcome(job, 0.0, function(job))
            except Exception as error:
                yield Outcome(job, 0.0, error=f"{type(error).__name__}: {error}")

    monkeypatch.setattr(sweeping, "run_calls", run)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path, recipe(grid=GRID, optim={"epochs": 1}))


def write(folder, tree):
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


def line(variant="gla", lr=0.01, seed=0, accuracy=0.5, mixer="gla", state=100, **more):
    slices = [{"label": "short", "accuracy": accuracy}, {"label": "long", "accuracy": accuracy / 2}]
    head = {"variant": variant, "mixer": mixer, "lr": lr, "seed": seed, "accuracy": accuracy, "exact": accuracy / 2}
    rest = {
        "state_bytes": state,
        "parameters": 1234,
        "steps": 10,
        "steps_to_99": None,
        "seconds": 2.0,
        "slices": slices,
    }
    return {**head, **rest, "layers": {"gla": 3, "attention": 1, "gated_conv": 1}, **more}


def test_every_point_is_one_line_and_the_same_command_skips_them(path, tmp_path, console, in_process):
    assert sweep(path, [], 1, None, tmp_path / "out", console) == []
    lines = read_results(tmp_path / "out" / "results.jsonl")
    assert len(lines) == 8
    assert {(x["variant"], x["lr"], x["seed"]) for x in lines} == {
        (v, lr, seed) for v in ("conv-d16", "gla-d16") for lr in (0.01, 0.03) for seed in (0, 1)
    }
    pinned = "recipe variant mixer lr seed parameters state_bytes steps steps_to_99 seconds accuracy exact slices"
    assert set(pinned.split()) <= lines[0].keys()
    assert {"label", "task", "length", "n_pairs", "accuracy", "exact", "stderr", "n"} <= lines[0]["slices"][0].keys()
    sweep(path, [], 1, None, tmp_path / "out", console)
    assert read_results(tmp_path / "out" / "results.jsonl") == lines
    assert "8 runs, 8 finished already" in console.file.getvalue()


def test_a_sweep_that_was_cut_off_runs_only_what_is_missing(path, tmp_path, console, in_process):
    results = tmp_path / "out" / "results.jsonl"
    sweep(path, [], 1, None, tmp_path / "out", console)
    first = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(first[:5]) + first[5][:40])  # the power went while the sixth line was written
    sweep(path, [], 1, None, tmp_path / "out", console)
    again = results.read_bytes().splitlines(keepends=True)
    assert again[:5] == first[:5] and again[5] == first[5][:40] + b"\n" and len(again) == 9
    drop = lambda x: {key: value for key, value in x.items() if key != "seconds"}  # noqa: E731
    assert [drop(x) for x in read_results(results)] == [drop(json.loads(x)) for x in first]


def test_only_takes_part_of_the_grid(path, tmp_path, console, in_process):
    sweep(path, [], 1, "gla-*", tmp_path, console)
    assert {x["variant"] for x in read_results(tmp_path / "results.jsonl")} == {"gla-d16"}
    with pytest.raises(ConfigError, match=r"--only 'gls-d16': matches no variant; did you mean 'gla-d16'"):
        sweep(path, [], 1, "gls-d16", tmp_path, console)


def test_results_of_another_recipe_are_not_taken_over(path, tmp_path, console, in_process):
    sweep(path, ["grid.seeds=[0]"], 1, "gla*", tmp_path, console)
    with pytest.raises(ConfigError, match=r"gla-d16 lr 0.01 seed 0 was run under another recipe; give --out"):
        sweep(path, ["optim.epochs=2"], 1, "gla*", tmp_path, console)


def test_a_failed_run_is_reported_and_does_not_stop_the_others(tmp_path, console, in_process):
    others = {"bad": {"pattern": ["gla"], "overrides": ["train=[{task: toy_unlearnable, examples: 9}]"]}}
    path = write(tmp_path, recipe(grid={"mixers": {**others, "gla": {"pattern": ["gla"]}}}, optim={"epochs": 1}))
    with pytest.raises(UserError, match=r"1 runs failed.*\n  bad-d16 lr 0.03 seed 0: TrainingError: loss is nan"):
        run_synthetic(path, [], 1, None, tmp_path / "out", console)
    assert [x["variant"] for x in read_results(tmp_path / "out" / "results.jsonl")] == ["gla-d16"]
    assert "gla-d16" in (tmp_path / "out" / "results.md").read_text()


def test_the_report_has_command_tables_and_plots(path, tmp_path, console, in_process):
    out = run_synthetic(path, ["grid.seeds=[0, 1]"], 1, None, tmp_path / "out", console)
    text = (out / "results.md").read_text()
    assert text.startswith(f"`hybridlm synthetic {path} 'grid.seeds=[0, 1]' --out {out}`, 8 runs, on ")
    assert "| conv-d16 |" in text
    assert "toy_successor L15" in text
    assert {x.suffix for x in out.glob("tradeoff.*")} == {".png", ".svg"}


def test_bounds_that_are_broken_fail_the_command(path, tmp_path, console, in_process):
    bound = ["expect={conv-d16: {at_least: 1.5}, gla-d16: {at_most: 1.0}}", "grid.seeds=[0]"]
    with pytest.raises(UserError, match=r"toy: not as expected; conv-d16: 0\.\d+ is below 1.5"):
        run_synthetic(path, bound, 1, None, tmp_path, console)


def test_best_rate_is_by_mean_over_seeds_among_the_most_complete():
    lines = [line(lr=0.01, seed=s, accuracy=a) for s, a in enumerate((0.5, 0.6, 0.7))]
    lines += [line(lr=0.03, seed=s, accuracy=a) for s, a in enumerate((0.9, 0.1, 0.1))]
    lines += [line(lr=0.1, seed=0, accuracy=1.0)]  # the other seeds are still to come
    assert [x["lr"] for x in best(lines)["gla"].lines] == [0.01] * 3
    assert [x["lr"] for x in best(lines[-1:])["gla"].lines] == [0.1]


def test_tables_show_mean_and_spread_over_seeds():
    lines = [line(seed=0, accuracy=0.4, steps_to_99=30), line(seed=1, accuracy=0.6)]
    [row] = summary(lines)
    assert row == ("gla", "0.01", "100 B", "1,234", "0.500 ± 0.141", "0.250 ± 0.071", "30 (1/2)", "10", "2")
    assert by_slice(lines, "accuracy") == (["variant", "short", "long"], [["gla", "0.500 ± 0.141", "0.250 ± 0.071"]])
    assert spread([0.25]) == "0.250"


def test_errors_choose_the_smaller_of_two_squared_errors():
    lines = [line(lr=lr, mse=mse) for lr, mse in ((0.01, 0.5), (0.03, 0.2))]
    for x in lines:
        del x["accuracy"]
    assert best(lines)["gla"].lines[0]["lr"] == 0.03
    for x in lines:
        x["slices"] = [{"label": "L8", "mse": 0.25, "mse_last": 0.5, "stderr": 0.1, "n": 4}]
    assert header(lines)[4] == "mse" and [row[4] for row in summary(lines)] == ["0.200"]
    assert metrics(lines) == ["mse", "mse_last"]
    assert by_slice(lines, "mse_last") == (["variant", "L8"], [["gla", "0.500"]])


def test_every_metric_has_a_table_of_the_slices_that_have_it(path, tmp_path, console, in_process):
    lines = [line()]
    lines[0]["slices"] = [{"label": "a", "task": "t", "accuracy": 0.5}, {"label": "b", "accuracy": 0.25, "among": 0.75}]
    assert metrics(lines) == ["accuracy", "among"]
    assert by_slice(lines, "among") == (["variant", "b"], [["gla", "0.750"]])
    text = (run_synthetic(path, [], 1, "gla-*", tmp_path / "out", console) / "results.md").read_text()
    assert text.index("\naccuracy by slice:") < text.index("\nexact by slice:")
    assert "exact by slice" in console.file.getvalue()


def test_share_of_full_attention_leaves_the_convolution_out():
    assert full_share(line()) == 0.25


def test_plots_draw_one_curve_per_mixer(tmp_path):
    lines = [line("a", mixer="gla", state=10), line("b", mixer="gla", state=20), line("c", mixer="attention", state=30)]
    for plot in (plot_tradeoff, plot_ratio):
        png, svg = plot(lines, tmp_path / plot.__name__)
        assert png.read_bytes().startswith(b"\x89PNG")
        assert svg.read_text().count("<!-- gla -->") == svg.read_text().count("<!-- attention -->") == 1


def test_a_file_that_holds_no_results_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"kind": "train", "step": 1}\n')
    with pytest.raises(DataError, match=r"results.jsonl: not a results file, a line has no 'variant'; move it away"):
        read_results(tmp_path / "results.jsonl")


def test_a_run_done_twice_counts_once(tmp_path):
    lines = [line(seed=seed) for seed in (0, 1, 0)]
    append_records(tmp_path / "r.jsonl", lines)
    assert read_results(tmp_path / "r.jsonl") == lines[:2]


def test_the_table_of_reuse_has_the_variants_that_were_tested_on_both_tasks():
    def line(variant, seed, **more):
        return {"variant": variant, "lr": 0.1, "seed": seed, "accuracy": 0.5, "steps_to_99": None, **more}

    lines = [line("mix", seed, reuse={"spearman": 0.4 + seed / 5, "jaccard": 1.0, "effects": {}}) for seed in (0, 1)]
    assert reuse_rows([*lines, line("other", 0)]) == [("mix", "0.500 ± 0.141", "1.000 ± 0.000")]
    assert reuse_rows([line("other", 0)]) == []
